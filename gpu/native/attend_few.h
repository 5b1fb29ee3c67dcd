// A block of keys for few rows, with what few_rows.h has: members of Attention.
#pragma once

#include "attention.h"

#if PAWL_TILES

namespace pawl {

// One block of keys for few rows of each key head.
template <class Element>
void Attention<Element>::attend_few(const AttentionTask<Element>& task, int64_t window, int64_t begin) {
    const int64_t rows = task.positions * group_;
    const int64_t count = std::min(task.first + task.positions - begin, kBlock);
    const int64_t pairs = kBlock / 2 * (head_dim_ / kPanel) * ((rows + kRowsAtOnce - 1) / kRowsAtOnce);
    next_.pace(task.heads * (kBlock / kTileSide * kKeysUnits + rows * (kBlock / kLanes) * kWeighUnits + pairs * kPairUnits));
    const Stored* values[kBlock];
    for (int64_t key = 0; key < kBlock; ++key) values[key] = entry(task.values, key);
    for (int64_t first = 0; first < task.heads; first += kHeadsAtOnce) {
        const int64_t end = std::min(task.heads, first + kHeadsAtOnce);
        for (int64_t head = first; head < end; ++head) multiply_keys(task, head, count);
        for (int64_t head = first; head < end; ++head)
            for (int64_t key = 0; key < count; key += kTileSide)
                few_.read(head, key / kTileSide, rows,
                          scores_.as<float>() + (key / kPanel * rows_ + head * rows) * kPanel + key % kPanel);
        for (int64_t head = first; head < end; ++head) weigh_rows(task, window, head * rows, begin);
        for (int64_t head = first; head < end; ++head) add_few(values, head, rows, count);
    }
}

// With the queries of the same head. Keys of a page lie one distance apart.
template <class Element>
void Attention<Element>::multiply_keys(const AttentionTask<Element>& task, int64_t head, int64_t count) {
    const Stored* keys = task.keys + head * head_dim_;
    for (int64_t key = 0; key < count; key += kTileSide) {
        next_.evenly(kKeysUnits);
        const bool whole = entries_[key] != kNowhere && entries_[key + kTileSide - 1] != kNowhere;
        if (whole && page_size_ % kTileSide == 0) {
            few_.multiply(head, keys + entries_[key], token_stride_ * int64_t(sizeof(Stored)), key / kTileSide);
            continue;
        }
        const void* each[kTileSide];
        for (int64_t i = 0; i < kTileSide; ++i) each[i] = entry(keys, key + i);
        few_.multiply_apart(head, each, key / kTileSide);
    }
}

// As `accumulate`; `values`: of all heads.
template <class Element>
void Attention<Element>::add_few(const Stored* const* values, int64_t head, int64_t rows, int64_t count) {
    alignas(64) float weights[kFewRows * kBlock];
    const auto* stored = reinterpret_cast<const Stored*>(weights_.as<Unit>() + head * rows * kWeightUnits);
    for (int64_t i = 0; i < rows * kBlock; ++i) weights[i] = Element::widen(stored[i]);
    for (int64_t column = 0; column < head_dim_; column += kPanel)
        for (int64_t row = 0; row < rows; row += kRowsAtOnce)
            add_few_rows<int(kRowsAtOnce)>(std::min(kRowsAtOnce, rows - row), weights + row * kBlock, values, head, column, count,
                                           head * rows + row);
}

template <class Element>
template <int kRows>
void Attention<Element>::add_few_rows(int64_t rows, const float* weights, const Stored* const* values, int64_t head,
                                      int64_t column, int64_t count, int64_t first_row) {
    if constexpr (kRows > 1) {
        if (rows < kRows)
            return add_few_rows<kRows - 1>(rows, weights, values, head, column, count, first_row);
    }
    add_values<kRows>(weights, values, head * head_dim_ + column, count, keep_.data() + first_row,
                      totals_.as<float>() + column * rows_ + first_row * kPanel, [&] { next_.evenly(kPairUnits); });
}

}  // namespace pawl

#endif
