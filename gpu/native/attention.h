// Attention of some query rows of one segment over the pages of its slot, in place.
//
// Keys are taken in blocks of 64 at absolute positions (0, 64, 128, ...), in order, each by the same two products and a
// running softmax. A row's arithmetic is therefore the same whether it decodes alone or stands in a prefill chunk, and
// wherever chunks and pages end. Blocks that a row does not see at all (its neighbours in the task do) multiply by
// exactly 1 and add exactly 0.
//
//     scores  [rows, 64]        queries x transposed keys    panels of 32 keys, depth head_dim
//     output  [rows, head_dim]  weights x values             panels of 32 dimensions, depth 64 keys
//
// Rows are (position, query head) pairs: the query heads that share a key head share one pass over its pages. While a
// block is computed the next one is fetched. A key or value outside what the rows see is never used: it may belong to
// somebody else, and 0 * NaN is NaN.
#pragma once

#include <algorithm>
#include <vector>

#include "block_fetch.h"
#include "few_rows.h"
#include "matrix.h"
#include "packing.h"
#include "tile.h"

namespace pawl {

constexpr int64_t kTaskRows = 48;   // rows that share the packing of a block; more would leave the first cache
constexpr float kNothingSeen = -1e30f;  // running maximum before the first key; finite, so that differences are too

template <class Element>
struct AttentionTask {
    typedef typename Element::Stored Stored;
    const Unit* queries;      // [heads][positions * group][units(head_dim)]
    int64_t queries_stride;   // units from one key head to the next
    Stored* output;           // row of the first position, at the first query head of the first key head
    int64_t output_stride;    // elements from one position to the next
    const Stored* keys;       // page 0, first key head of the task
    const Stored* values;
    const int32_t* pages;     // the slot's page table row
    int64_t heads;            // key heads, neighbours; heads * positions is at most `capacity`
    int64_t first;            // position of the first row
    int64_t positions;
};

// One for each thread: no two in one line, or in two that a core fetches together.
template <class Element>
class alignas(128) Attention {
public:
    typedef typename Element::Stored Stored;

    Attention(int64_t group, int64_t kv_heads, int64_t head_dim, int64_t page_size, float query_scale)
        : group_(group),
          head_dim_(head_dim),
          page_size_(page_size),
          token_stride_(kv_heads * head_dim),
          score_scale_(query_scale * 1.44269504f),
          rows_(group * std::max(kv_heads, kTaskRows / group)),
          key_panels_(2 * units<Element>(head_dim) * kPanel * 4),
          value_panels_(padded(head_dim) * kWeightUnits * 4),
          scores_((2 * rows_ + 3) * kPanel * 4),
          weights_(rows_ * kWeightUnits * 4),
          totals_(padded(head_dim) * rows_ * 4),
          nothing_(token_stride_ * int64_t(sizeof(Stored))),
          states_(size_t(rows_)),
          keep_(size_t(rows_)),
          few_(kv_heads, head_dim) {}

    // Most (position, key head) pairs a task may have.
    int64_t capacity() const { return rows_ / group_; }

    // `following`: what this thread computes next, or nothing; its first block is fetched while the last one is computed.
    void run(const AttentionTask<Element>& task, int64_t window, const AttentionTask<Element>* following) {
        const int64_t rows = task.positions * group_;
        const int64_t oldest = first_visible(task.first, window), end = task.first + task.positions;
        std::fill_n(states_.begin(), task.heads * rows, State{kNothingSeen, 0.0f});
        std::memset(totals_.as<char>(), 0, size_t(padded(head_dim_) * rows_ * 4));
        for (int64_t head = 0; is_few(rows) && head < task.heads; ++head)
            few_.take(head, task.queries + head * task.queries_stride, rows);
        int64_t begin = oldest / kBlock * kBlock;
        find_entries(task.pages, begin, oldest, end, next_.entries);
        for (; begin < end; begin += kBlock) {
            std::copy_n(next_.entries, kBlock, entries_);
            if (begin + kBlock < end)
                begin_fetching(task, begin + kBlock, window);
            else if (following != nullptr)
                begin_fetching(*following, first_visible(following->first, window) / kBlock * kBlock, window);
            attend(task, window, begin);
            next_.fetch(kBlock);
        }
        for (int64_t head = 0; head < task.heads; ++head) write(task, head);
    }

private:
    static constexpr int64_t kWeightUnits = kBlock / Element::kPerUnit;

    struct State {
        float maximum;  // of the scores so far, in powers of two
        float sum;      // of the weights relative to it
    };

    static int64_t first_visible(int64_t position, int64_t window) {
        return window > 0 ? std::max(position + 1 - window, int64_t(0)) : 0;
    }

    // What is fetched from now on: the task's block at `begin`.
    void begin_fetching(const AttentionTask<Element>& task, int64_t begin, int64_t window) {
        find_entries(task.pages, begin, first_visible(task.first, window), task.first + task.positions, next_.entries);
        next_.begin(task.keys, task.values, task.heads * head_dim_ * int64_t(sizeof(Stored)));
    }

    // entries[i]: element offset of key begin + i, or kNowhere outside oldest .. end.
    void find_entries(const int32_t* pages, int64_t begin, int64_t oldest, int64_t end, int64_t* entries) const {
        int64_t page = begin / page_size_, place = begin % page_size_;
        for (int64_t i = 0; i < kBlock; ++i) {
            const bool seen = begin + i >= oldest && begin + i < end;
            entries[i] = seen ? (pages[page] * page_size_ + place) * token_stride_ : kNowhere;
            if (++place == page_size_) place = 0, ++page;
        }
    }

    // One block of keys.
    void attend(const AttentionTask<Element>& task, int64_t window, int64_t begin) {
        [[maybe_unused]] const AsInTiles<Element> tiny{};
        if constexpr (kFew<Element>)
            if (is_few(task.positions * group_)) return attend_few(task, window, begin);
        next_.pace(0);
        for (int64_t head = 0; head < task.heads; ++head) attend_block(task, window, head, begin);
    }

    // One block of keys for the rows of one key head.
    __attribute__((noinline)) void attend_block(const AttentionTask<Element>& task, int64_t window, int64_t head,
                                                int64_t begin) {
        const int64_t rows = task.positions * group_, first_row = head * rows;
        const int64_t count = std::min(task.first + task.positions - begin, kBlock);
        pack_keys(task.keys + head * head_dim_, count, task.heads);
        score(task.queries + head * task.queries_stride, first_row, rows, count);
        weigh_rows(task, window, first_row, begin);
        accumulate(task.values + head * head_dim_, first_row, rows, count, task.heads);
    }

    // The weights of one key head's rows.
    void weigh_rows(const AttentionTask<Element>& task, int64_t window, int64_t first_row, int64_t begin) {
        for (int64_t row = 0; row < task.positions * group_; ++row) {
            const int64_t position = task.first + row / group_;
            const int64_t from = std::max(first_visible(position, window) - begin, int64_t(0));
            const int64_t to = std::min(position + 1 - begin, kBlock);
            if (from == 0 && to == kBlock)
                weigh<true>(first_row + row, from, to);
            else
                weigh<false>(first_row + row, from, to);
        }
    }

    const Stored* entry(const Stored* base, int64_t key) const {
        return entries_[key] == kNowhere ? nothing_.as<Stored>() : base + entries_[key];
    }

    // Keys as panels [depth][32 keys]: a transposition of units.
    void pack_keys(const Stored* keys, int64_t count, int64_t heads) {
        const int64_t depth = units<Element>(head_dim_);
        for (int64_t key = 0; key < count; key += 16) {
            const char* rows[16];
            for (int64_t i = 0; i < 16; ++i) rows[i] = reinterpret_cast<const char*>(entry(keys, key + i));
            Unit* to = key_panels_.as<Unit>() + key / kPanel * depth * kPanel + key % kPanel;
            int64_t k = 0;
#if defined(__AVX512F__)
            for (; k + 16 <= depth; k += 16) transpose_16(rows, k * 4, to + k * kPanel);
#endif
            next_.share(8, heads);
            for (; k < depth; ++k)
                for (int64_t i = 0; i < 16; ++i) std::memcpy(to + k * kPanel + i, rows[i] + k * 4, 4);
        }
    }

    // Values as panels [depth = keys][32 dimensions].
    void pack_values(const Stored* values, int64_t depth, int64_t heads) {
        for (int64_t k = 0; k < depth; ++k) {
            if (k * Element::kPerUnit % 2 == 0) next_.share(1, heads);
            const Stored* first = entry(values, k * Element::kPerUnit);
            const Stored* last = entry(values, (k + 1) * Element::kPerUnit - 1);
            for (int64_t column = 0; column < head_dim_; column += kPanel) {
                Unit* to = value_panels_.as<Unit>() + column * kWeightUnits + k * kPanel;
                pair_up<Element>(first + column, last + column, std::min(int64_t(kPanel), head_dim_ - column), to);
            }
        }
    }

    void score(const Unit* queries, int64_t first_row, int64_t rows, int64_t count) {
        const int64_t depth = units<Element>(head_dim_);
        for (int64_t panel = 0; panel * kPanel < count; ++panel)
            for (int64_t row = 0; row < rows; row += kTileRows<Element>)
                multiply_tile<Element>(int(std::min<int64_t>(kTileRows<Element>, rows - row)), queries + row * depth, depth,
                                       key_panels_.as<Unit>() + panel * depth * kPanel, depth,
                                       scores_.as<float>() + (panel * rows_ + first_row + row) * kPanel, nullptr,
                                       Fetch{key_panels_.as<Unit>(), 0});
    }

    // Scores of one row -> weights 2 ** (score - running maximum), 0 outside from .. to. kAll: nothing is outside.
    template <bool kAll>
    void weigh(int64_t row, int64_t from, int64_t to) {
        auto* weights = reinterpret_cast<Stored*>(weights_.as<Unit>() + row * kWeightUnits);
        State& state = states_[size_t(row)];
        if (from >= to) {
            std::memset(weights, 0, kBlock * sizeof(Stored));
            keep_[size_t(row)] = 1.0f;
            return;
        }
        constexpr int kVectors = int(kBlock) / kLanes;
        Ints lane{};
        for (int i = 0; i < kLanes; ++i) lane[i] = i;
        Floats scores[kVectors], highest = all(kNothingSeen);
        Ints seen[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            const int key = v * kLanes;
            const float* from_panel = scores_.as<float>() + (key / kPanel * rows_ + row) * kPanel + key % kPanel;
            scores[v] = load<Floats>(from_panel) * score_scale_;
            if constexpr (!kAll) {
                seen[v] = (lane + key >= int32_t(from)) & (lane + key < int32_t(to));
                scores[v] = seen[v] ? scores[v] : all(kNothingSeen);
            }
            highest = maximum(scores[v], highest);
        }
        const float top = std::max(state.maximum, maximum_of_lanes(highest));
        Floats sums[kParts / kLanes] = {};
        for (int v = 0; v < kVectors; ++v) {
            Floats weight = power_of_two(scores[v] - top);
            if constexpr (!kAll) weight = seen[v] ? weight : Floats{};
            sums[v % (kParts / kLanes)] += weight;
            if constexpr (kFew<Element>) next_.evenly(kWeighUnits);
            Element::store_narrow(weights + v * kLanes, weight);
        }
        // The common case spelled out: 2 ** 0 is exactly 1.
        const float keep = top == state.maximum ? 1.0f : power_of_two(all(state.maximum - top))[0];
        keep_[size_t(row)] = keep;
        state = State{top, state.sum * keep + sum_of_parts(sums)};
    }

    void accumulate(const Stored* values, int64_t first_row, int64_t rows, int64_t count, int64_t heads) {
#if defined(__AVX512BW__)
        if constexpr (Element::kPerUnit == 2 && !kInBlocks<Element>)
            if (rows <= kVectorRows && head_dim_ % kPanel == 0)
                return accumulate_few(values, first_row, int(rows), count, heads);
#endif
        // Beyond the last key both weights and values are zero: blocks of a sum are filled with them.
        const int64_t depth = kInBlocks<Element> ? rounded_up(units<Element>(count), kBlockUnits) : units<Element>(count);
        pack_values(values, depth, heads);
        for (int64_t column = 0; column < head_dim_; column += kPanel)
            for (int64_t row = first_row; row < first_row + rows; row += kTileRows<Element>)
                multiply_tile<Element, true>(int(std::min<int64_t>(kTileRows<Element>, first_row + rows - row)),
                                             weights_.as<Unit>() + row * kWeightUnits, kWeightUnits,
                                             value_panels_.as<Unit>() + column * kWeightUnits, depth,
                                             totals_.as<float>() + column * rows_ + row * kPanel,
                                             keep_.data() + row, Fetch{});
    }

    // attend_few.h: whether rows are few; one block of keys for few rows of each key head.
    bool is_few(int64_t rows) const { return kFew<Element> && rows <= kFewRows && head_dim_ % kPanel == 0; }
    __attribute__((noinline)) void attend_few(const AttentionTask<Element>& task, int64_t window, int64_t begin);
    void multiply_keys(const AttentionTask<Element>& task, int64_t head, int64_t count);
    void add_few(const Stored* const* values, int64_t head, int64_t rows, int64_t count);
    template <int kRows>
    void add_few_rows(int64_t rows, const float* weights, const Stored* const* values, int64_t head, int64_t column,
                      int64_t count, int64_t first_row);

#if defined(__AVX512BW__)
    // As `accumulate`, of rows that share one tile: values are paired as they are multiplied, without panels of them.
    template <int kRows = kVectorRows>
    void accumulate_few(const Stored* values, int64_t first_row, int rows, int64_t count, int64_t heads) {
        if constexpr (kRows > 1) {
            if (rows < kRows) return accumulate_few<kRows - 1>(values, first_row, rows, count, heads);
        }
        const Unit* weights = weights_.as<Unit>() + first_row * kWeightUnits;
        for (int64_t column = 0; column < head_dim_; column += kPanel) {
            float* totals = totals_.as<float>() + column * rows_ + first_row * kPanel;
            Floats total[kRows][2];
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row)
                for (int v = 0; v < 2; ++v)
                    total[row][v] = load<Floats>(totals + row * kPanel + v * kLanes) * keep_[size_t(first_row + row)];
            for (int64_t k = 0; k < units<Element>(count); ++k) {
                if (column == 0) next_.share(1, heads);
                const Paired pairs = paired(entry(values, 2 * k) + column, entry(values, 2 * k + 1) + column);
#pragma GCC unroll 8
                for (int row = 0; row < kRows; ++row) {
                    const Ints unit = Ints{} + int32_t(weights[row * kWeightUnits + k]);
                    for (int v = 0; v < 2; ++v) total[row][v] = Element::dot(total[row][v], unit, (Ints)pairs.units[v]);
                }
            }
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row)
                for (int v = 0; v < 2; ++v) store(totals + row * kPanel + v * kLanes, total[row][v]);
        }
    }
#endif

    void write(const AttentionTask<Element>& task, int64_t head) {
        const int64_t rows = task.positions * group_;
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = head * rows + i;
            Stored* to = task.output + i / group_ * task.output_stride + (head * group_ + i % group_) * head_dim_;
            const float inverse = 1.0f / states_[size_t(row)].sum;
            for (int64_t column = 0; column < head_dim_; column += kPanel) {
                const float* total = totals_.as<float>() + column * rows_ + row * kPanel;
                const int64_t count = std::min(int64_t(kPanel), head_dim_ - column);
                for (int64_t c = 0; c < count; ++c) to[column + c] = Element::narrow(total[c] * inverse);
            }
        }
    }

    // What 16 keys and their scores, 16 weights of a row, and a pair of values take of a block's time, where rows are few.
    static constexpr int64_t kKeysUnits = 8, kWeighUnits = 12, kPairUnits = 1;

    const int64_t group_, head_dim_, page_size_, token_stride_;
    const float score_scale_;
    const int64_t rows_;
    Memory key_panels_, value_panels_, scores_, weights_, totals_, nothing_;
    std::vector<State> states_;
    std::vector<float> keep_;
    FewRows few_;
    int64_t entries_[kBlock];
    BlockFetch<Stored> next_;
};

}  // namespace pawl

#include "attend_few.h"
