// A layer of experts: each row uses the few whose scores are largest. The members of Decoder that run it.
//
// Rows are grouped by expert, so that a weight is read once for all rows that want it. Neither who else chose an expert
// nor where a row stands in its group reaches the row's bits: its scores, its products and the sum over its experts, in
// the order of their scores, are functions of the row alone.
//
// A thread may come to a phase that the others have long left, when what they prepared for it is already another
// layer's. So the number of tasks of a phase depends only on the number of rows; tasks that a layer does not need find
// nothing to do.
#pragma once

#include "step.h"

namespace pawl {

// The experts of one row and their shares, from the router's scores: the largest, of equals the lower number.
template <class Element>
void Decoder<Element>::choose_experts(int64_t row) {
    const float* scores = mixed_.row(row);
    Choice* choices = &choices_[size_t(pairs(row))];
    const int num = shape_.experts_per_row;
    float highest = scores[0], sum = 0.0f, chosen_sum = 0.0f;
    for (int expert = 1; expert < shape_.num_experts; ++expert) highest = std::max(highest, scores[expert]);
    for (int expert = 0; expert < shape_.num_experts; ++expert) sum += std::exp(scores[expert] - highest);
    for (int i = 0; i < num; ++i) {
        // Scores that are not numbers are compared like others, so that experts are valid and distinct even then.
        int best = -1;
        for (int expert = 0; expert < shape_.num_experts; ++expert) {
            const bool taken = std::any_of(choices, choices + i, [&](const Choice& c) { return c.expert == expert; });
            if (!taken && (best < 0 || scores[expert] > scores[best])) best = expert;
        }
        choices[i] = Choice{best, std::exp(scores[best] - highest) / sum, 0};
        chosen_sum += choices[i].share;
    }
    if (!shape_.normalised_shares) return;
    for (int i = 0; i < num; ++i) choices[i].share /= chosen_sum;
}

// Rows for which computing an expert takes about as long as reading its weights.
constexpr int64_t kReadRows = 16;

// The pairs of one expert, in blocks, each for one of the parts that have it: the one with the fewest rows so far, of
// equals the first. All ranks share them out alike, and take down their own. A piece is not so small that its weights
// would be read for less than they take.
template <class Element>
void Decoder<Element>::add_blocks(int64_t index, int32_t expert, int64_t first, int64_t end) {
    const uint32_t parts = parts_of(index, expert);
    const int64_t pieces = std::max<int64_t>(1, std::min(num_parts(parts), (end - first) / kReadRows));
    const int64_t most = std::min(kRowBlock, (end - first + pieces - 1) / pieces);
    for (int64_t begin = first; begin < end; begin += most) {
        int least = -1;
        for (int part = 0; part < int(part_rows_.size()); ++part)
            if ((parts >> part & 1) != 0 && (least < 0 || part_rows_[size_t(part)] < part_rows_[size_t(least)]))
                least = part;
        const int64_t count = std::min(most, end - begin);
        part_rows_[size_t(least)] += std::max(count, kReadRows);
        if (least == shape_.part) blocks_.push_back(Block{begin, count, expert});
    }
}

template <class Element>
void Decoder<Element>::count_copies() {
    most_copies_ = 0;
    for (int64_t index = 0; index < shape_.num_layers; ++index) {
        int64_t copies = 0;
        for (int64_t expert = 0; layers_[size_t(index)].routed && expert < shape_.num_experts; ++expert)
            copies += std::max<int64_t>(0, num_parts(parts_of(index, expert)) - 1);
        most_copies_ = std::max(most_copies_, copies);
    }
}

// Give each (row, expert) pair its place: experts in order, within an expert rows in order.
template <class Element>
void Decoder<Element>::group_by_expert(int64_t index, int64_t rows, int64_t* counts) {
    std::vector<int64_t> next(size_t(shape_.num_experts) + 1);
    for (int64_t i = 0; i < pairs(rows); ++i) ++next[size_t(choices_[size_t(i)].expert) + 1];
    for (int32_t expert = 0; counts != nullptr && expert < shape_.num_experts; ++expert)
        counts[expert] += next[size_t(expert) + 1];
    blocks_.clear();
    for (int32_t expert = 0; expert < shape_.num_experts; ++expert) next[size_t(expert) + 1] += next[size_t(expert)];
    // What only one part can do first, so that the others are shared out over what is left.
    part_rows_.assign(kMostRanks, 0);
    for (const bool shared : {false, true})
        for (int32_t expert = 0; expert < shape_.num_experts; ++expert)
            if ((num_parts(parts_of(index, expert)) > 1) == shared)
                add_blocks(index, expert, next[size_t(expert)], next[size_t(expert) + 1]);
    for (int64_t i = 0; i < pairs(rows); ++i) {
        Choice& choice = choices_[size_t(i)];
        choice.pair = next[size_t(choice.expert)]++;
    }
}

// A product of every pair with its expert's matrix, which `pick` takes from the expert's MLP.
template <class Element>
template <int kPanels, class Pick, class Epilogue>
void Decoder<Element>::expert_product(Walk& walk, const ElementRows<Element>& from, const Rows& pairs,
                                      const Layer<Element>& layer, int64_t panels, Pick&& pick, Epilogue&& epilogue) {
    // An expert has at most one block that is not full, or one for each part that has it.
    const int64_t most = std::min<int64_t>(shape_.num_experts, pairs.count) + pairs.count / kRowBlock + most_copies_;
    const Shares shares(panels / kPanels, most, threads());
    walk.phase(most * shares.count, [&](int64_t task) {
        if (task / shares.count >= int64_t(blocks_.size())) return;
        const Block& block = blocks_[size_t(task / shares.count)];
        const int64_t share = task % shares.count;
        multiply_block<kPanels>(walk, from, pairs, block.first, block.count, pick(layer.mlps[size_t(block.expert)]),
                                shares.begin(share), shares.end(share), nullptr, epilogue);
    });
}

// normed, hidden -> hidden
template <class Element>
void Decoder<Element>::mix_experts(Walk& walk, int64_t index, const Rows& rows) {
    const Layer<Element>& layer = layers_[size_t(index)];
    int64_t* counts = expert_counts_ == nullptr ? nullptr : expert_counts_ + index * shape_.num_experts;
    product<1>(walk, normed_, rows, layer.router, nullptr, [&](int64_t row, int num, int64_t panel, auto& out) {
        for (int i = 0; i < num; ++i)
            std::memcpy(mixed_.row(row + i) + panel * kPanel, out[0] + i * kPanel, kPanel * sizeof(float));
    });
    const Rows pairs{this->pairs(rows.count), 1};
    walk.phase(rows.count, [&](int64_t row) { choose_experts(row); });
    walk.phase(1, [&](int64_t) { group_by_expert(index, rows.count, counts); });
    walk.phase(pairs.count, [&](int64_t i) {
        const Choice& choice = choices_[size_t(i)];
        if (!holds(index, choice.expert)) return;
        gathered_.copy(pairs, choice.pair, normed_, rows, i / shape_.experts_per_row);
    });
    const Part &inner = shape_.expert_inner, &columns = shape_.expert_columns;
    expert_product<2>(
        walk, gathered_, pairs, layer, 2 * padded(inner.count) / kPanel,
        [](const Mlp<Element>& mlp) -> const auto& { return mlp.gate_up; },
        [&](int64_t row, int num, int64_t pair, auto& out) {
            store_gated(pairs, row, num, inner.begin / kPanel + pair, out[0], out[1]);
        });
    meet(walk);
    expert_product<1>(
        walk, inner_, pairs, layer, padded(columns.count) / kPanel,
        [](const Mlp<Element>& mlp) -> const auto& { return mlp.down; },
        [&](int64_t row, int num, int64_t panel, auto& out) {
            for (int i = 0; i < num; ++i)
                std::memcpy(said_.row(row + i) + columns.begin + panel * kPanel, out[0] + i * kPanel,
                            kPanel * sizeof(float));
        });
    meet(walk);
    walk.phase(rows.count, [&](int64_t row) {
        const Choice* choices = &choices_[size_t(this->pairs(row))];
        float* hidden = hidden_.row(row);
        for (int64_t c = 0; c < said_.stride; c += kLanes) {
            Floats sum{};
            for (int i = 0; i < shape_.experts_per_row; ++i)
                sum = multiply_add(load<Floats>(said_.row(choices[i].pair) + c), all(choices[i].share), sum);
            store(hidden + c, load<Floats>(hidden + c) + sum);
        }
    });
}

}  // namespace pawl
