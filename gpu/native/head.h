// What is made of the rows that are wanted once all layers are done: the members of Decoder that run it.
#pragma once

#include "step.h"

namespace pawl {

// The head for `rows` from `start`. Logits, where they are wanted, go to rows of `vocab` from `logits`.
template <class Element>
void Decoder<Element>::score_block(Walk& walk, const Inputs& inputs, int64_t start, const Rows& rows, float* logits) {
    const Part& vocabulary = shape_.vocabulary;
    const int64_t panels = (shape_.vocab_size + kPanel - 1) / kPanel, first_panel = vocabulary.begin / kPanel;
    static_assert(kPanel == 32);
    product<1>(walk, normed_, rows, head_, nullptr, [&](int64_t row, int num, int64_t panel, auto& out) {
        const int64_t first = vocabulary.begin + panel * kPanel;
        const int64_t count = std::min<int64_t>(kPanel, vocabulary.count - panel * kPanel);
        for (int i = 0; i < num; ++i) {
            const float* scores = out[0] + i * kPanel;
            if (logits != nullptr) {
                std::memcpy(logits + (row + i - start) * shape_.vocab_size + first, scores, size_t(count) * 4);
                continue;
            }
            Best& best = best_[size_t(walk.thread * inputs.num_logits + row + i)];
            // Nearly no panel holds a new best: look at its largest first. A number less itself is 0 if it is finite.
            Floats highest = load<Floats>(scores), nothing = highest - highest;
            for (int c = kLanes; c < kPanel; c += kLanes) {
                const Floats value = load<Floats>(scores + c);
                highest = maximum(highest, value);
                nothing = nothing + (value - value);
            }
            if (sum_of_lanes(nothing) != 0.0f) best = Best{std::numeric_limits<float>::infinity(), kNoToken};
            // A panel has a word of its mask to itself.
            uint32_t allowed = inputs.masks == nullptr ? ~0u : inputs.masks[(row + i) * panels + first_panel + panel];
            if (allowed == 0 || maximum_of_lanes(highest) < best.logit) continue;
            for (int64_t c = 0; c < count; ++c, allowed >>= 1)
                if (allowed & 1) best = better(best, Best{scores[c], int32_t(first + c)});
        }
    }, start);
}

// The token of the largest logit of each row, from what each thread of each rank has found.
template <class Element>
void Decoder<Element>::choose(Walk& walk, const Inputs& inputs) {
    const int64_t rows = inputs.num_logits;
    walk.phase(1, [&](int64_t) {
        for (int64_t row = 0; row < rows; ++row) {
            Best best = best_[size_t(row)];
            for (int64_t thread = 1; thread < threads(); ++thread)
                best = better(best, best_[size_t(thread * rows + row)]);
            inputs.greedy[row] = best.token;
            if (ranks_ != nullptr) *bests_.row(ranks_->rank * rows + row) = best;
        }
    });
    if (ranks_ == nullptr) return;
    meet(walk);
    walk.phase(1, [&](int64_t) {
        for (int64_t row = 0; row < rows; ++row) {
            Best best = *bests_.row(row);
            for (int64_t rank = 1; rank < ranks_->ranks; ++rank) best = better(best, *bests_.row(rank * rows + row));
            inputs.greedy[row] = best.token;
        }
    });
}

// Final norm, and head: logits, or the token of the largest one; or the normed rows alone.
template <class Element>
void Decoder<Element>::score(Walk& walk, const Inputs& inputs) {
    walk.phase(wanted_.count, [&](int64_t row) {
        normalise_row(final_norm_, wanted_, row);
        if (inputs.hidden == nullptr) return;
        const auto* normed = reinterpret_cast<const Stored*>(normed_.row(row));
        float* to = inputs.hidden + row * shape_.hidden_size;
        for (int64_t i = 0; i < shape_.hidden_size; ++i) to[i] = Element::widen(normed[i]);
    });
    if (inputs.hidden != nullptr) return;
    if (ranks_ == nullptr || inputs.greedy != nullptr) {
        score_block(walk, inputs, 0, wanted_, inputs.logits);
        if (inputs.greedy != nullptr) choose(walk, inputs);
        return;
    }
    // Each rank writes its words of a block of rows where all can read them, and takes a copy of the whole. Two blocks
    // take turns: whoever writes one has met all who have copied what was there before.
    for (int64_t first = 0, turn = 0; first < wanted_.count; first += kRowBlock, turn ^= 1) {
        const int64_t count = std::min(kRowBlock, wanted_.count - first);
        const int64_t at = turn * kRowBlock;
        score_block(walk, inputs, first, shared_out(count, threads()), scored_.row(at));
        meet(walk);
        walk.phase(count, [&](int64_t row) {
            std::memcpy(inputs.logits + (first + row) * shape_.vocab_size, scored_.row(at + row),
                        size_t(shape_.vocab_size) * 4);
        });
    }
}

}  // namespace pawl
