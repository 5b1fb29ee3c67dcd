// Products of bytes in AMX's tile registers, to the same bits as without them: the sums of integers are exact, and what
// is rounded is rounded in the same order.
//
// Some blocks of a panel are unpacked at a time, for all rows. Then, for 16 rows and 16 columns, a register makes the
// sums of one block while those of an earlier one, in memory by now, are weighted and added.
#pragma once

#include "block_scales.h"
#include "block_tile.h"
#include "quantised.h"

#if PAWL_TILES

namespace pawl {

// Rows from which on this is faster than vectors: what is unpacked goes to memory first.
constexpr int kLeastTileRows = 16;

// Blocks whose sums are in memory or on their way there: what a register stores can be read only some time later.
constexpr int kSumsAhead = 5;

// What a block's sums are weighted with: one scale; one, and a least for the sum of the row; one for each half.
enum class Weighting { kScale, kLeast, kHalves };

template <class L>
constexpr Weighting kWeightingOf = L::kLeast                            ? Weighting::kLeast
                                   : L::kScales == Scales::kTwoBytes ? Weighting::kHalves
                                                                     : Weighting::kScale;

// Neighbouring blocks of one panel: what stays in the first cache, with the same blocks of 32 rows beside it.
struct UnpackedBlocks {
    static constexpr int kMost = 8;
    alignas(64) Unit quants[kMost][kBlockSteps][kPanel];   // signed bytes, less the offset
    alignas(64) float scales[kMost][2][kPanel];            // scale, and `second` as in BlockScales
};

// Add `count` blocks' part of kRows rows and 16 columns from `column` to c. `from`: the first row's first block.
template <Weighting kWeighting, int kRows>
__attribute__((noinline)) void add_blocks(const Unit* from, int64_t stride, const UnpackedBlocks& blocks, int count,
                                          int column, float* c) {
    constexpr bool kTwo = kWeighting == Weighting::kHalves;
    constexpr int kSteps = kTwo ? kBlockSteps / 2 : kBlockSteps;
    alignas(64) int32_t sums[kSumsAhead][kTwo ? 2 : 1][kTileSide][kTileSide];
    Floats total[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) total[row] = load<Floats>(c + row * kPanel);
    shape_tiles(kRows, kSteps);
    const auto multiply = [&](int b) {
        const Unit* rows = from + b * kByteBlockUnits;
        const Unit* quants = &blocks.quants[b][0][column];
        _tile_zero(0);
        _tile_loadd(4, rows, stride * 4);
        _tile_loadd(6, quants, kPanel * 4);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, sums[b % kSumsAhead][0], kTileSide * 4);
        if constexpr (kTwo) {
            _tile_zero(1);
            _tile_loadd(4, rows + kSteps, stride * 4);
            _tile_loadd(7, quants + kSteps * kPanel, kPanel * 4);
            _tile_dpbssd(1, 4, 7);
            _tile_stored(1, sums[b % kSumsAhead][1], kTileSide * 4);
        }
    };
    for (int b = 0; b < std::min(count, kSumsAhead - 1); ++b) multiply(b);
    for (int b = 0; b < count; ++b) {
        if (b + kSumsAhead - 1 < count) multiply(b + kSumsAhead - 1);
        const Floats scale = load<Floats>(blocks.scales[b][0] + column), second = load<Floats>(blocks.scales[b][1] + column);
        const Unit* row = from + b * kByteBlockUnits;
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i, row += stride) {
            const auto& bytes = *reinterpret_cast<const ByteBlock*>(row);
            Floats product = __builtin_convertvector(load<Ints>(sums[b % kSumsAhead][0][i]), Floats) * scale;
            if constexpr (kTwo)
                product = multiply_add(__builtin_convertvector(load<Ints>(sums[b % kSumsAhead][1][i]), Floats), second, product);
            if constexpr (kWeighting == Weighting::kLeast) product = multiply_add(second, spread(bytes.sum), product);
            total[i] = multiply_add(product, spread(bytes.scale), total[i]);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) store(c + row * kPanel, total[row]);
}

// `rows` (1 .. 16) rows: picks the instance.
template <Weighting kWeighting, int kRows = kTileSide>
void add_blocks_to(int rows, const Unit* from, int64_t stride, const UnpackedBlocks& blocks, int count, int column,
                   float* c) {
    if constexpr (kRows > 1) {
        if (rows < kRows)
            return add_blocks_to<kWeighting, kRows - 1>(rows, from, stride, blocks, count, column, c);
    }
    add_blocks<kWeighting, kRows>(from, stride, blocks, count, column, c);
}

// As `multiply_panel` (quantised.cpp).
template <class L>
void multiply_panel_in_tiles(const Unit* from, int64_t stride, int rows, const uint8_t* group, int64_t groups, float* c) {
    typedef uint8_t Each __attribute__((vector_size(4 * kLanes)));
    UnpackedBlocks blocks;
    std::fill(c, c + rows * kPanel, 0.0f);
    int count = 0;
    const auto add = [&] {
        write_before_tiles(&blocks);
        for (int row = 0; row < rows; row += kTileSide)
            for (int column = 0; column < kPanel; column += kTileSide)
                add_blocks_to<kWeightingOf<L>>(std::min(kTileSide, rows - row), from + row * stride, stride, blocks, count,
                                               column, c + row * kPanel + column);
        from += count * kByteBlockUnits;
        count = 0;
    };
    for (int64_t g = 0; g < groups; ++g, group += L::kGroupBytes)
        for (int b = 0; b < L::kBlocks; ++b) {
            const uint8_t* block = group + L::kHeader + b * L::kBlockBytes;
            for (int64_t line = 0; line < L::kBlockBytes; line += 64) __builtin_prefetch(block + kBytesAhead + line, 0, 2);
            for (int lane = 0; lane < kPanel; lane += kLanes) {
                Bytes weights[kBlockSteps];
                L::unpack(block, lane, weights);
                for (int step = 0; step < kBlockSteps; ++step)
                    store(blocks.quants[count][step] + lane, (Bytes)((Each)weights[step] - uint8_t(L::kOffset)));
                const BlockScales scales = scales_of<L>(group, block, lane);
                store(blocks.scales[count][0] + lane, scales.scale);
                store(blocks.scales[count][1] + lane, scales.second);
            }
            if (++count == UnpackedBlocks::kMost) add();
        }
    if (count > 0) add();
}

}  // namespace pawl

#endif
