// The two element types a model can have, seen by the kernels as units of four bytes.
//
//     Bf16     one unit = two bfloat16 that are neighbours along the depth of a product (the earlier one in the low half)
//     Float32  one unit = one float32
//
// Packing, transposing and multiplying move units; only `dot`, the tiles and the conversions look inside.
#pragma once

#include <cmath>

#include "simd.h"

namespace pawl {

// AMX's tile registers, where the processor has them and the system lets this process use them (build.py asks).
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && !defined(PAWL_NO_TILES)
#define PAWL_TILES 1
#else
#define PAWL_TILES 0
#endif

// Whether products of bfloat16 are summed in blocks, as those registers do it (block_tile.h), or one after the other.
#ifndef PAWL_BLOCK_SUMS
#define PAWL_BLOCK_SUMS PAWL_TILES
#endif

typedef uint32_t Unit;

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// In every lane, to the bit: from memory without an operation.
inline Floats spread(float value) { return as_floats(Ints{} + int32_t(bits_of_float(value))); }

struct Bf16 {
    typedef uint16_t Stored;
    static constexpr int kPerUnit = 2;

    static float widen(Stored value) { return float_of_bits(uint32_t(value) << 16); }

    // To nearest, ties to even; a NaN stays a NaN.
    static Stored narrow(float value) {
        const uint32_t bits = bits_of_float(value);
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        return Stored((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    }

    // total + a.high * b.high + a.low * b.low in every lane, each sum rounded. So does the one instruction of AVX-512, but
    // that numbers below 2 ** -126 are zero there.
    static Floats dot(Floats total, Ints a, Ints b) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(total, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
        const bfloat16x8_t left = (bfloat16x8_t)a, right = (bfloat16x8_t)b;
        return (Floats)vbfmlalbq_f32(vbfmlaltq_f32((float32x4_t)total, left, right), left, right);
#else
        const Ints high = Ints{} + int32_t(0xffff0000);
        total = multiply_add(as_floats(a & high), as_floats(b & high), total);
        return multiply_add(as_floats(a << 16), as_floats(b << 16), total);
#endif
    }

    // kLanes values, narrowed.
    static void store_narrow(Stored* to, Floats value) {
#if defined(__AVX512BF16__)
        const auto narrowed = _mm512_cvtneps_pbh(value);
        std::memcpy(to, &narrowed, sizeof(narrowed));
#else
        typedef uint16_t Narrowed __attribute__((vector_size(2 * kLanes)));
        const Words bits = (Words)value, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const Words nan = Words{} + 0x7fc0u, kept = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
        const Narrowed narrowed = __builtin_convertvector(kept, Narrowed);
        std::memcpy(to, &narrowed, sizeof(narrowed));
#endif
    }
};

struct Float32 {
    typedef float Stored;
    static constexpr int kPerUnit = 1;

    static float widen(Stored value) { return value; }
    static Stored narrow(float value) { return value; }
    static Floats dot(Floats total, Ints a, Ints b) { return multiply_add(as_floats(a), as_floats(b), total); }
    static void store_narrow(Stored* to, Floats value) { store(to, value); }
};

// Widths of rows and panels: a multiple of this many elements, the rest filled with zeros.
constexpr int kPanel = 32;

inline int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t padded(int64_t elements) { return rounded_up(elements, kPanel); }

template <class Element>
inline int64_t units(int64_t elements) {
    return (elements + Element::kPerUnit - 1) / Element::kPerUnit;
}

}  // namespace pawl
