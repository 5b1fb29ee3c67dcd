// Attention of few rows where there are tile registers: those of one decoding request that share a key head.
//
// To make panels of a block of keys, and of values, takes longer than to multiply them by a few rows. So keys are the rows
// of tiles, where they lie, and queries the columns; and values are multiplied on vectors, in the order of tiles
// (block_tile.h). A row has the bits that it has among many.
#pragma once

#include <type_traits>

#include "block_tile.h"
#include "memory.h"
#include "packing.h"

namespace pawl {

// Whether rows can be few.
template <class Element>
constexpr bool kFew = PAWL_TILES && kInBlocks<Element>;

constexpr int64_t kFewRows = 8;
constexpr int64_t kRowsAtOnce = 4;   // whose values are summed together: more would not stay in registers
// Heads whose keys are multiplied before the first one's scores are looked at: what one waits for is another's work.
constexpr int64_t kHeadsAtOnce = 4;

#if PAWL_TILES

// While it lives, numbers below 2 ** -126 are zero on this thread, as they are in tiles.
class TinyIsZero {
public:
    TinyIsZero() { _mm_setcsr(before_ | 0x8040); }
    ~TinyIsZero() { _mm_setcsr(before_); }
    TinyIsZero(const TinyIsZero&) = delete;
    TinyIsZero& operator=(const TinyIsZero&) = delete;

private:
    const unsigned before_ = _mm_getcsr();
};

// The queries of a task's rows as columns of tiles, and the scores that they make of keys.
class FewRows {
public:
    FewRows(int64_t heads, int64_t head_dim)
        : depth_(head_dim / 2), columns_(heads * depth_ * kTileSide * 4), copied_(kTileSide * depth_ * 4) {}

    // `rows` (1 .. kFewRows) queries of key head `head`, one after the other.
    void take(int64_t head, const Unit* queries, int64_t rows) {
        Unit* to = columns_.as<Unit>() + head * depth_ * kTileSide;
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t unit = 0; unit < depth_; ++unit) to[unit * kTileSide + row] = queries[row * depth_ + unit];
    }

    // The products of 16 keys, rows `stride` bytes apart, with the queries of `head`: the `sixteen`-th of a block. They stay
    // until the head that is kHeadsAtOnce later.
    void multiply(int64_t head, const void* keys, int64_t stride, int64_t sixteen) {
        const auto* key = static_cast<const Unit*>(keys);
        const Unit* query = columns_.as<Unit>() + head * depth_ * kTileSide;
        write_before_tiles();
        shape_tiles(kTileSide, kBlockUnits);
        _tile_zero(0);
        for (int64_t unit = 0; unit < depth_; unit += kBlockUnits) {
            _tile_loadd(4, key + unit, stride);
            _tile_loadd(6, query + unit * kTileSide, kTileSide * 4);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, products_[head % kHeadsAtOnce][sixteen], kTileSide * 4);
    }

    // As `multiply`, of keys that are not one distance apart.
    void multiply_apart(int64_t head, const void* const* keys, int64_t sixteen) {
        for (int64_t i = 0; i < kTileSide; ++i) std::memcpy(copied_.as<Unit>() + i * depth_, keys[i], size_t(depth_) * 4);
        multiply(head, copied_.as<Unit>(), depth_ * 4, sixteen);
    }

    // scores [rows][32] of the keys that were the `sixteen`-th; up to three rows more are written.
    void read(int64_t head, int64_t sixteen, int64_t rows, float* scores) const {
        const char* keys[kTileSide];
        for (int i = 0; i < kTileSide; ++i) keys[i] = reinterpret_cast<const char*>(products_[head % kHeadsAtOnce][sixteen][i]);
        for (int64_t row = 0; row < rows; row += 4)
            transpose_four(keys, row * 4, reinterpret_cast<Unit*>(scores) + row * kPanel);
    }

private:
    const int64_t depth_;     // units of a key
    Memory columns_;          // [heads][depth][16]
    Memory copied_;           // [16][depth]
    alignas(64) float products_[kHeadsAtOnce][4][kTileSide][kTileSide];   // [head][a block's sixteens][key][row]
};

// Of 32 numbers, the even ones and the odd ones.
struct Halves {
    Floats even, odd;
    static Halves of(const float* numbers) {
        const Floats first = load<Floats>(numbers), last = load<Floats>(numbers + kLanes);
        return {joined(first, places(0, 2), last), joined(first, places(1, 2), last)};
    }
    static Halves of(const uint16_t* numbers) {
        const Words pairs = load<Words>(reinterpret_cast<const Unit*>(numbers));
        return {as_floats(pairs << 16), as_floats(pairs & 0xffff0000u)};
    }
    void write(float* numbers) const {
        // Places in `odd` are 16 and more.
        const Ints early = places(0, 1), each = early / 2 + early % 2 * kLanes;
        store(numbers, joined(even, each, odd));
        store(numbers + kLanes, joined(even, each + kLanes / 2, odd));
    }

private:
    static_assert(kLanes == 16 && kPanel == 32);
    static Ints places(int first, int step) {
        Ints places{};
        for (int i = 0; i < kLanes; ++i) places[i] = first + i * step;
        return places;
    }
    static Floats joined(Floats a, Ints places, Floats b) {
        return (Floats)_mm512_permutex2var_ps((__m512)a, (__m512i)places, (__m512)b);
    }
};

// totals [kRows][32] = totals * keep + weights [kRows][64] times the values of `count` keys, 32 elements of each, which
// are followed by one more where that is odd. Before each pair of keys, `beside`.
template <int kRows, class Beside>
inline void add_values(const float* weights, const uint16_t* const* values, int64_t first_column, int64_t count,
                       const float* keep, float* totals, Beside&& beside) {
    constexpr int64_t kKeys = 2 * kBlockUnits;
    Halves total[kRows];
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
        total[row] = Halves::of(totals + row * kPanel);
        total[row].even *= keep[row], total[row].odd *= keep[row];
    }
    for (int64_t first = 0; first < count; first += kKeys) {
        Halves low[kRows] = {}, high[kRows] = {};
        for (int64_t key = first; key < std::min(count, first + kKeys); key += 2) {
            beside();
            const Halves early = Halves::of(values[key] + first_column), late = Halves::of(values[key + 1] + first_column);
#pragma GCC unroll 4
            for (int row = 0; row < kRows; ++row) {
                const float* weight = weights + row * 2 * kKeys + key;
                const Floats one = spread(weight[0]), other = spread(weight[1]);
                low[row].even = multiply_add(one, early.even, low[row].even);
                low[row].odd = multiply_add(one, early.odd, low[row].odd);
                high[row].even = multiply_add(other, late.even, high[row].even);
                high[row].odd = multiply_add(other, late.odd, high[row].odd);
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
            total[row].even += low[row].even + high[row].even;
            total[row].odd += low[row].odd + high[row].odd;
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) total[row].write(totals + row * kPanel);
}

#else

struct TinyIsZero {};

struct FewRows {
    FewRows(int64_t, int64_t) {}
    void take(int64_t, const Unit*, int64_t) {}
};

#endif

template <class Element>
using AsInTiles = typename std::conditional<kInBlocks<Element>, TinyIsZero, std::true_type>::type;

}  // namespace pawl
