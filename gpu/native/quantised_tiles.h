// Products of bytes in AMX's tile registers, to the same bits as without them: the sums of integers are exact, and what
// is rounded is rounded in the same order.
//
// Some blocks of a panel are unpacked together, for all rows. For 16 rows, registers make the sums of each of these
// blocks, while vectors, which have nothing to do, unpack one of the blocks that come next; then the sums are weighted and
// added.
#pragma once

#include "block_scales.h"
#include "block_tile.h"
#include "quantised.h"

#if PAWL_TILES

namespace pawl {

// Rows from which on this is faster than vectors: what is unpacked goes to memory first.
constexpr int kLeastTileRows = 16;

// What a block's sums are weighted with: one scale; one, and a least for the sum of the row; one for each half.
enum class Weighting { kScale, kLeast, kHalves };

template <class L>
constexpr Weighting kWeightingOf = L::kLeast                            ? Weighting::kLeast
                                   : L::kScales == Scales::kTwoBytes ? Weighting::kHalves
                                                                     : Weighting::kScale;

// Neighbouring blocks of one panel. Two of these, the same blocks of 32 rows and their sums stay in the first cache.
struct UnpackedBlocks {
    static constexpr int kMost = 4;
    alignas(64) Unit quants[kMost][kBlockSteps][kPanel];   // signed bytes, less the offset
    alignas(64) float scales[kMost][2][kPanel];            // scale, and `second` as in BlockScales
};

// What registers have made of 16 rows: [block][half of the inputs][columns][row].
struct TileSums {
    alignas(64) int32_t of[UnpackedBlocks::kMost][2][kPanel / kTileSide][kTileSide][kTileSide];
};

template <class L>
void unpack_block(const uint8_t* group, const uint8_t* block, UnpackedBlocks& to, int at) {
    typedef uint8_t Each __attribute__((vector_size(4 * kLanes)));
    for (int64_t line = 0; line < L::kBlockBytes; line += 64) __builtin_prefetch(block + kBytesAhead + line, 0, 2);
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        Bytes weights[kBlockSteps];
        L::unpack(block, lane, weights);
        Unit* steps = to.quants[at][0] + lane;
        for (int step = 0; step < kBlockSteps; ++step)
            store(steps + step * kPanel, (Bytes)((Each)weights[step] - uint8_t(L::kOffset)));
        const BlockScales scales = scales_of<L>(group, block, lane);
        store(to.scales[at][0] + lane, scales.scale);
        store(to.scales[at][1] + lane, scales.second);
    }
}

// Registers 0, 1: sums of 16 columns each; 4: the rows; 6, 7: the columns. `row`: the first row's block.
template <Weighting kWeighting>
inline void sum_block(const Unit* row, int64_t stride, const UnpackedBlocks& blocks, int block, TileSums& sums) {
    constexpr int kHalves = kWeighting == Weighting::kHalves ? 2 : 1, kSteps = kBlockSteps / kHalves;
    for (int half = 0; half < kHalves; ++half) {
        const Unit* quants = blocks.quants[block][half * kSteps];
        _tile_zero(0);
        _tile_loadd(4, row + half * kSteps, stride * 4);
        _tile_loadd(6, quants, kPanel * 4);
        _tile_dpbssd(0, 4, 6);
        _tile_zero(1);
        _tile_loadd(7, quants + kTileSide, kPanel * 4);
        _tile_dpbssd(1, 4, 7);
        _tile_stored(0, sums.of[block][half][0], kTileSide * 4);
        _tile_stored(1, sums.of[block][half][1], kTileSide * 4);
    }
}

// Add `count` blocks' part of kRows rows and 16 columns from `column` to c. `from`: the first row's first block.
template <Weighting kWeighting, int kRows>
__attribute__((noinline)) void weigh_tile(const Unit* from, int64_t stride, const UnpackedBlocks& blocks,
                                          const TileSums& sums, int count, int column, float* c) {
    Floats total[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) total[row] = load<Floats>(c + row * kPanel + column);
    for (int b = 0; b < count; ++b) {
        const Floats scale = load<Floats>(blocks.scales[b][0] + column), second = load<Floats>(blocks.scales[b][1] + column);
        const Unit* row = from + b * kByteBlockUnits;
        const auto sum = [&](int half, int i) {
            return __builtin_convertvector(load<Ints>(sums.of[b][half][column / kTileSide][i]), Floats);
        };
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, row += stride) {
            const auto& bytes = *reinterpret_cast<const ByteBlock*>(row);
            Floats product = sum(0, i) * scale;
            if constexpr (kWeighting == Weighting::kHalves) product = multiply_add(sum(1, i), second, product);
            if constexpr (kWeighting == Weighting::kLeast) product = multiply_add(second, spread(bytes.sum), product);
            total[i] = multiply_add(product, spread(bytes.scale), total[i]);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) store(c + row * kPanel + column, total[row]);
}

// `rows` (1 .. 16) rows: picks the instance.
template <Weighting kWeighting, int kRows = kTileSide>
void weigh_tiles(int rows, const Unit* from, int64_t stride, const UnpackedBlocks& blocks, const TileSums& sums, int count,
                 float* c) {
    if constexpr (kRows > 1) {
        if (rows < kRows) return weigh_tiles<kWeighting, kRows - 1>(rows, from, stride, blocks, sums, count, c);
    }
    for (int column = 0; column < kPanel; column += kTileSide)
        weigh_tile<kWeighting, kRows>(from, stride, blocks, sums, count, column, c);
}

// Add `count` blocks' part of all rows to c. After each block's first sums, `beside`.
template <Weighting kWeighting, class Beside>
void add_blocks(const Unit* from, int64_t stride, int rows, const UnpackedBlocks& blocks, int count, float* c,
                Beside&& beside) {
    TileSums sums;
    for (int first = 0; first < rows; first += kTileSide) {
        const int num = std::min(kTileSide, rows - first);
        const Unit* row = from + first * stride;
        write_before_tiles(&blocks);
        shape_tiles(num, kWeighting == Weighting::kHalves ? kBlockSteps / 2 : kBlockSteps);
        for (int block = 0; block < count; ++block) {
            sum_block<kWeighting>(row + block * kByteBlockUnits, stride, blocks, block, sums);
            if (first == 0) beside(block);
        }
        weigh_tiles<kWeighting>(num, row, stride, blocks, sums, count, c + first * kPanel);
    }
}

// As `multiply_panel` (quantised.cpp).
template <class L>
void multiply_panel_in_tiles(const Unit* from, int64_t stride, int rows, const uint8_t* group, int64_t groups, float* c) {
    const int64_t blocks = groups * L::kBlocks;
    UnpackedBlocks unpacked[2];
    const auto unpack = [&](int64_t block, UnpackedBlocks& to, int at) {
        const uint8_t* of = group + block / L::kBlocks * L::kGroupBytes;
        unpack_block<L>(of, of + L::kHeader + block % L::kBlocks * L::kBlockBytes, to, at);
    };
    std::fill(c, c + rows * kPanel, 0.0f);
    int count = int(std::min<int64_t>(UnpackedBlocks::kMost, blocks));
    for (int block = 0; block < count; ++block) unpack(block, unpacked[0], block);
    for (int64_t first = 0, turn = 0; first < blocks; first += count, turn ^= 1) {
        count = int(std::min<int64_t>(count, blocks - first));
        add_blocks<kWeightingOf<L>>(from + first * kByteBlockUnits, stride, rows, unpacked[turn], count, c, [&](int block) {
            const int64_t next = first + count + block;
            if (next < blocks) unpack(next, unpacked[turn ^ 1], block);
        });
    }
}

}  // namespace pawl

#endif
