// The one product kernel: a few rows times one panel of 32 columns.
//
//     a      [rows][depth] units, rows `a_stride` units apart
//     panel  [depth][32] units: column c of unit k at panel[k * 32 + c]
//     c      [rows][32] float32
//
// Each output element is one accumulator that takes the depth in order, one unit at a time. How many rows share a tile
// changes only which registers are used, so a row's result does not depend on its neighbours.
#pragma once

#include "element.h"

namespace pawl {

constexpr int kPanelVectors = kPanel / kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 16 accumulators keep two pipes of latency 6 busy; more rows run out of address registers
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 1;
#endif

// How far ahead of the product the panel is fetched, in units: the next pages of a stream that is read once.
constexpr int64_t kFetchAhead = 24 * kPanel;

// kKeep: start from c * keep[row] instead of zero.
template <class Element, int kRows, bool kKeep>
__attribute__((noinline)) void multiply_rows(const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth, float* c,
                          const float* keep) {
    Floats total[kRows][kPanelVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; ++v)
            total[row][v] = kKeep ? load<Floats>(c + row * kPanel + v * kLanes) * keep[row] : Floats{};
    for (int64_t k = 0; k < depth; ++k) {
        Ints columns[kPanelVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; ++v) {
            columns[v] = load<Ints>(panel + v * kLanes);
            if (!kKeep && v * kLanes % 16 == 0) __builtin_prefetch(panel + kFetchAhead + v * kLanes);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
            const Ints unit = Ints{} + int32_t(a[row * a_stride + k]);
#pragma GCC unroll 8
            for (int v = 0; v < kPanelVectors; ++v) total[row][v] = Element::dot(total[row][v], unit, columns[v]);
        }
        panel += kPanel;
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; ++v) store(c + row * kPanel + v * kLanes, total[row][v]);
}

// `rows` (1 .. kTileRows) rows: picks the instance.
template <class Element, bool kKeep = false, int kRows = kTileRows>
inline void multiply_tile(int rows, const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth, float* c,
                          const float* keep = nullptr) {
    if constexpr (kRows > 1) {
        if (rows < kRows)
            return multiply_tile<Element, kKeep, kRows - 1>(rows, a, a_stride, panel, depth, c, keep);
    }
    multiply_rows<Element, kRows, kKeep>(a, a_stride, panel, depth, c, keep);
}

}  // namespace pawl
