// The one product kernel: a few rows times one panel of 32 columns.
//
//     a      [rows][depth] units, rows `a_stride` units apart
//     panel  [depth][32] units: column c of unit k at panel[k * 32 + c]
//     c      [rows][32] float32
//
// Each output element is one accumulator that takes the depth in order, one unit at a time; or, where bfloat16 is summed
// in blocks, as block_tile.h says. How many rows share a tile changes only which registers are used, so a row's result
// does not depend on its neighbours.
#pragma once

#include "block_tile.h"

namespace pawl {

#if defined(__AVX512F__)
constexpr int kVectorRows = 8;  // 16 accumulators keep two pipes of latency 6 busy; more rows run out of address registers
#elif defined(__AVX__)
constexpr int kVectorRows = 3;
#elif defined(__aarch64__)
constexpr int kVectorRows = 4;
#else
constexpr int kVectorRows = 1;
#endif

// Most rows that share a tile.
template <class Element>
constexpr int kTileRows = kInBlocks<Element> ? kBlockTileRows : kVectorRows;

// How far ahead of itself a panel is fetched, in units.
constexpr int64_t kFetchAhead = 64 * kPanel;

inline Fetch fetch_for(const Unit* panel, const Unit* next_panel, int64_t depth, int64_t tile, int64_t tiles) {
    if (tiles == 1) return Fetch{panel + kFetchAhead, kPanel};
    return Fetch{next_panel + depth * kPanel * tile / tiles, kPanel / tiles};
}

// kKeep: start from c * keep[row] instead of zero, and fetch nothing.
template <class Element, int kRows, bool kKeep>
__attribute__((noinline)) void multiply_rows(const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth,
                                             float* c, const float* keep, Fetch fetch) {
    for (int column = 0; column < kPanel; column += kTileVectors * kLanes, c += kTileVectors * kLanes) {
        Floats total[kRows][kTileVectors];
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v)
                total[row][v] = kKeep ? load<Floats>(c + row * kPanel + v * kLanes) * keep[row] : Floats{};
        const Unit* from = panel + column;
        for (int64_t k = 0; k < depth; ++k, from += kPanel) {
            Ints columns[kTileVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v) columns[v] = load<Ints>(from + v * kLanes);
            if (!kKeep && column == 0) {
                __builtin_prefetch(fetch.from, 0, 2);
                __builtin_prefetch(fetch.from + 16, 0, 2);
                fetch.from += fetch.step;
            }
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row) {
                const Ints unit = Ints{} + int32_t(a[row * a_stride + k]);
#pragma GCC unroll 8
                for (int v = 0; v < kTileVectors; ++v) total[row][v] = Element::dot(total[row][v], unit, columns[v]);
            }
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v) store(c + row * kPanel + v * kLanes, total[row][v]);
    }
}

// `rows` (1 .. kTileRows) rows: picks the instance.
template <class Element, bool kKeep = false, int kRows = kVectorRows>
inline void multiply_tile(int rows, const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth, float* c,
                          const float* keep, Fetch fetch) {
    if constexpr (kInBlocks<Element>) {
        multiply_block_tile<kKeep>(rows, a, a_stride, panel, depth, c, keep, fetch);
    } else {
        if constexpr (kRows > 1) {
            if (rows < kRows)
                return multiply_tile<Element, kKeep, kRows - 1>(rows, a, a_stride, panel, depth, c, keep, fetch);
        }
        multiply_rows<Element, kRows, kKeep>(a, a_stride, panel, depth, c, keep, fetch);
    }
}

}  // namespace pawl
