#include "made.h"

#include "block_scales.h"

namespace pawl {

namespace {

// Elements of two rows of kLanes columns: scale * quant + least, and as units.
#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)
struct Places {
    alignas(64) uint8_t quants[2][2][4 * kLanes] = {};   // of a step's two rows of units, columns 0 .. 7 and 8 .. 15
    alignas(64) uint32_t columns[2][kLanes] = {};
};

constexpr Places make_places() {
    Places places;
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < kLanes; ++i) {
            const int column = half * kLanes / 2 + i / 2;
            places.columns[half][i] = uint32_t(column);
            for (int unit = 0; unit < 2; ++unit)
                places.quants[unit][half][4 * i] = uint8_t(column * 4 + unit * 2 + i % 2);
        }
    return places;
}
constexpr Places kPlaces = make_places();

// Narrowing takes two vectors of neighbours: so both elements of a unit lie side by side before.
struct Weighting {
    __m512 scale[2], least[2];
    Weighting(Floats scales, Floats leasts) {
        for (int half = 0; half < 2; ++half) {
            const __m512i columns = _mm512_load_si512(kPlaces.columns[half]);
            scale[half] = _mm512_permutexvar_ps(columns, scales), least[half] = _mm512_permutexvar_ps(columns, leasts);
        }
    }
};

inline void make_step(Bytes quants, const Weighting& weighting, Unit* to) {
    constexpr __mmask64 kFirstOfFour = 0x1111111111111111;
#pragma GCC unroll 2
    for (int unit = 0; unit < 2; ++unit) {
        __m512 values[2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m512i places = _mm512_load_si512(kPlaces.quants[unit][half]);
            const __m512i whole = _mm512_maskz_permutexvar_epi8(kFirstOfFour, places, (__m512i)quants);
            values[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), weighting.scale[half], weighting.least[half]);
        }
        const __m512bh units = _mm512_cvtne2ps_pbh(values[1], values[0]);
        std::memcpy(to + unit * kPanel, &units, sizeof(units));
    }
}
#else
struct Weighting {
    Floats scale, least;
    Weighting(Floats scales, Floats leasts) : scale(scales), least(leasts) {}
};

inline void make_step(Bytes quants, const Weighting& weighting, Unit* to) {
    for (int unit = 0; unit < 2; ++unit) {
        alignas(64) Bf16::Stored elements[2][kLanes];
        for (int i = 0; i < 2; ++i) {
            const Floats whole = __builtin_convertvector((Ints)(quants >> (16 * unit + 8 * i) & 255u), Floats);
            Bf16::store_narrow(elements[i], multiply_add(whole, weighting.scale, weighting.least));
        }
        for (int i = 0; i < kLanes; ++i) to[unit * kPanel + i] = uint32_t(elements[0][i]) | uint32_t(elements[1][i]) << 16;
    }
}
#endif

// One block of a panel, as [kBlockUnits][32] units.
//
// scale * quant has no rounding in float32, whatever the format, nor has scale * kOffset, the least where a format has
// none. So it makes no difference that sums are fused here.
template <class L>
inline void make_block(const uint8_t* group, const uint8_t* block, Unit* to) {
    for (int64_t line = 0; line < L::kBlockBytes; line += 64) __builtin_prefetch(block + kBytesAhead + line, 0, 2);
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        Bytes quants[kBlockSteps];
        L::unpack(block, lane, quants);
        const BlockScales scales = scales_of<L>(group, block, lane);
        const auto less_offset = [](Floats scale) { return Weighting(scale, scale * -float(L::kOffset)); };
        const Weighting early = L::kLeast ? Weighting(scales.scale, scales.second) : less_offset(scales.scale);
        const Weighting late = L::kScales == Scales::kTwoBytes ? less_offset(scales.second) : early;
#pragma GCC unroll 8
        for (int step = 0; step < kBlockSteps; ++step)
            make_step(quants[step], step < kBlockSteps / 2 ? early : late, to + 2 * step * kPanel + lane);
    }
}

// The blocks of a panel, one after the other.
template <class L>
class Blocks {
public:
    explicit Blocks(const uint8_t* panel) : group_(panel), block_(panel + L::kHeader) {}
    void make_next(Unit* to) {
        make_block<L>(group_, block_, to);
        block_ += L::kBlockBytes;
        if (block_ == group_ + L::kGroupBytes) group_ = block_, block_ += L::kHeader;
    }

private:
    const uint8_t *group_, *block_;
};

constexpr int kMadeUnits = kBlockUnits * kPanel;
static_assert(2 * kBlockUnits == kBlockInputs);

#if PAWL_TILES
template <class L, bool kTwo>
void multiply_made_rows(const Unit* from, int64_t stride, int rows, const uint8_t* panel, int64_t depth, float* c) {
    alignas(64) Unit made[2][kMadeUnits];
    Blocks<L> blocks(panel);
    blocks.make_next(made[0]);
    multiply_blocks<kTwo, false>(rows, from, stride, depth, c, [&](int64_t k) {
        const int64_t turn = k / kBlockUnits % 2;
        if (k + kBlockUnits < depth) blocks.make_next(made[turn ^ 1]);
        write_before_tiles(made);
        return made[turn];
    });
}
#endif

}  // namespace

void make_panel(const QuantisedPanel& panel, int64_t inputs, Unit* to) {
    with_layout(panel.format, [&](auto l) {
        Blocks<decltype(l)> blocks(panel.at);
        for (int64_t k = 0; k < inputs / 2; k += kBlockUnits) blocks.make_next(to + k * kPanel);
    });
}

#if PAWL_TILES
void multiply_made(const Unit* from, int64_t stride, int rows, const QuantisedPanel& panel, int64_t inputs, float* c) {
    with_layout(panel.format, [&](auto l) {
        const auto multiply = rows > kTileSide ? multiply_made_rows<decltype(l), true> : multiply_made_rows<decltype(l), false>;
        multiply(from, stride, rows, panel.at, inputs / 2, c);
    });
}
#endif

}  // namespace pawl
