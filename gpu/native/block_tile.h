// The product kernel of bfloat16 where sums are made in blocks of 16 units, 32 elements, as AMX's tile registers do it:
//
//     total += (products of the low halves, in order) + (products of the high halves, in order)
//
// Both inner sums begin at zero; every product is fused with the addition to its sum. The last block may be shorter. A
// processor without tile registers comes to the same bits with vectors, but for numbers below 2 ** -126, which tiles take
// for zero. So what one machine has computed can be computed again on another (build.py: `block_sums`).
#pragma once

#include <algorithm>

#include "element.h"

namespace pawl {

template <class Element>
constexpr bool kInBlocks = PAWL_BLOCK_SUMS && Element::kPerUnit == 2;

constexpr int kBlockUnits = 16;

constexpr int kPanelVectors = kPanel / kLanes;
// Columns are computed so many vectors at a time: accumulators must not leave the registers.
constexpr int kTileVectors = std::min(kPanelVectors, 4);

// What to bring close while a tile is computed: two cache lines at `from`, moving on by `step` units with each unit of
// depth. A panel that serves one tile is read once, so its own next pages are fetched; one that serves many hides the
// fetching of the next panel, a share in each tile.
struct Fetch {
    const Unit* from;
    int64_t step;
};

#if PAWL_TILES

constexpr int kTileSide = 16;   // rows of a tile, and columns of 32 bits
constexpr int kBlockTileRows = 2 * kTileSide;

// The eight registers, whose numbers must be written out where they are used:
//
//     0, 1 / 2, 3   sums of the first 16 rows / of those behind, columns 0 .. 15 and 16 .. 31
//     4 / 5         the rows
//     6, 7          the columns

// Compilers do not know that tiles are loaded from memory: what is written before this is there.
inline void write_before_tiles(const void* written = nullptr) { asm volatile("" : : "r"(written) : "memory"); }

// How a thread's registers are shaped: for so many rows, and so many units of depth. 0 rows: nobody knows.
struct TileShape {
    int rows, depth;
    bool serves(int wanted, int units) const {
        return depth == units && (rows == wanted || (wanted == kTileSide && rows > wanted));
    }
};
inline thread_local TileShape tile_shape{0, 0};

inline void shape_tiles(int rows, int depth) {
    if (tile_shape.serves(rows, depth)) return;
    tile_shape = TileShape{rows, depth};
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    const auto set = [&](int tile, int tile_rows, int units) {
        config.rows[tile] = uint8_t(tile_rows), config.row_bytes[tile] = uint16_t(units * 4);
    };
    const int first = std::min(rows, kTileSide), second = rows - first;
    set(0, first, kTileSide), set(1, first, kTileSide), set(4, first, depth);
    if (second > 0) set(2, second, kTileSide), set(3, second, kTileSide), set(5, second, depth);
    set(6, depth, kTileSide), set(7, depth, kTileSide);
    write_before_tiles(&config);
    _tile_loadconfig(&config);
}

// For one thread and one step: others may have shaped the registers before, and a thread that waits should have none.
class TileRegisters {
public:
    TileRegisters() { tile_shape = TileShape{0, 0}; }
    ~TileRegisters() {
        tile_shape = TileShape{0, 0};
        _tile_release();
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// Rows times 32 columns, of which `block_at(k)` gives the block that begins at unit k; each is asked for once, in order.
// `depth` is whole blocks, or one that is shorter. kTwo: more than 16 rows. kBegun: go on from what is in c.
template <bool kTwo, bool kBegun, class BlockAt>
inline void multiply_blocks(int rows, const Unit* a, int64_t a_stride, int64_t depth, float* c, BlockAt&& block_at) {
    constexpr int64_t kStride = kPanel * 4;
    float* const second = c + kTileSide * kPanel;
    write_before_tiles();
    shape_tiles(rows, int(std::min<int64_t>(depth, kBlockUnits)));
    if constexpr (kBegun) {
        _tile_loadd(0, c, kStride);
        _tile_loadd(1, c + kTileSide, kStride);
        if constexpr (kTwo) _tile_loadd(2, second, kStride);
        if constexpr (kTwo) _tile_loadd(3, second + kTileSide, kStride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kTwo) _tile_zero(2);
        if constexpr (kTwo) _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += kBlockUnits) {
        const Unit* block = block_at(k);
        _tile_loadd(4, a + k, a_stride * 4);
        _tile_loadd(6, block, kStride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, block + kTileSide, kStride);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kTwo) {
            _tile_loadd(5, a + kTileSide * a_stride + k, a_stride * 4);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, kStride);
    _tile_stored(1, c + kTileSide, kStride);
    if constexpr (kTwo) _tile_stored(2, second, kStride);
    if constexpr (kTwo) _tile_stored(3, second + kTileSide, kStride);
}

template <bool kKeep, bool kTwo>
inline void multiply_block_rows(int rows, const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth, float* c,
                                Fetch fetch) {
    const int64_t whole = depth / kBlockUnits * kBlockUnits;
    const auto block_at = [&](int64_t k) {
        for (int i = 0; fetch.step != 0 && i < kBlockUnits; ++i, fetch.from += fetch.step) {
            __builtin_prefetch(fetch.from, 0, 2);
            __builtin_prefetch(fetch.from + 16, 0, 2);
        }
        return panel + k * kPanel;
    };
    if (whole > 0) multiply_blocks<kTwo, kKeep>(rows, a, a_stride, whole, c, block_at);
    if (whole == depth) return;
    a += whole, panel += whole * kPanel, depth -= whole, fetch = Fetch{};
    if (whole > 0) return multiply_blocks<kTwo, true>(rows, a, a_stride, depth, c, block_at);
    multiply_blocks<kTwo, kKeep>(rows, a, a_stride, depth, c, block_at);
}

// As `multiply_tile` (tile.h), of 1 .. kBlockTileRows rows.
template <bool kKeep>
inline void multiply_block_tile(int rows, const Unit* a, int64_t a_stride, const Unit* panel, int64_t depth, float* c,
                                const float* keep, Fetch fetch) {
    for (int row = 0; kKeep && row < rows; ++row) {
        if (keep[row] == 1.0f) continue;
        for (int i = 0; i < kPanel; i += kLanes) store(c + row * kPanel + i, load<Floats>(c + row * kPanel + i) * keep[row]);
    }
    if (rows > kTileSide) return multiply_block_rows<kKeep, true>(rows, a, a_stride, panel, depth, c, fetch);
    multiply_block_rows<kKeep, false>(rows, a, a_stride, panel, depth, c, fetch);
}

#else

constexpr int kBlockTileRows = 1;

struct TileRegisters {};

template <bool kKeep>
inline void multiply_block_tile(int, const Unit* a, int64_t, const Unit* panel, int64_t depth, float* c, const float* keep,
                                Fetch) {
    const Ints high = Ints{} + int32_t(0xffff0000);
    for (int column = 0; column < kPanel; column += kTileVectors * kLanes) {
        Floats total[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v)
            total[v] = kKeep ? load<Floats>(c + column + v * kLanes) * keep[0] : Floats{};
        for (int64_t first = 0; first < depth; first += kBlockUnits) {
            Floats even[kTileVectors] = {}, odd[kTileVectors] = {};
            for (int64_t k = first; k < std::min(depth, first + kBlockUnits); ++k) {
                const Ints unit = Ints{} + int32_t(a[k]);
                for (int v = 0; v < kTileVectors; ++v) {
                    const Ints columns = load<Ints>(panel + k * kPanel + column + v * kLanes);
                    even[v] = multiply_add(as_floats(unit << 16), as_floats(columns << 16), even[v]);
                    odd[v] = multiply_add(as_floats(unit & high), as_floats(columns & high), odd[v]);
                }
            }
            for (int v = 0; v < kTileVectors; ++v) total[v] += even[v] + odd[v];
        }
        for (int v = 0; v < kTileVectors; ++v) store(c + column + v * kLanes, total[v]);
    }
}

#endif

}  // namespace pawl
