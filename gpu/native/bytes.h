// Products of bytes: of weights, 0 .. 255, and activations, -127 .. 127, with sums of 32 bits.
//
// Sums of integers are exact, so every machine has the same bits here, whatever instructions it has.
#pragma once

#include <algorithm>
#include <type_traits>

#include "element.h"

namespace pawl {

// A lane of 32 bits holds four bytes that are neighbours along the depth.
typedef Words Bytes;

inline Bytes load_bytes(const uint8_t* from) {
    Bytes value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

#if (defined(__AVX512VNNI__) && defined(__AVX512F__)) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define PAWL_BYTE_PRODUCTS
constexpr int kMostWeight = 255;
inline Ints multiply_four(Ints total, Bytes weights, Ints activations) {
#if defined(__AVX512F__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, (__m512i)activations);
#else
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)weights, (__m256i)activations);
#endif
}

#elif defined(__aarch64__)
#define PAWL_BYTE_PRODUCTS
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kMostWeight = 255;
inline Ints multiply_four(Ints total, Bytes weights, Ints activations) {
    return (Ints)vusdotq_s32((int32x4_t)total, (uint8x16_t)weights, (int8x16_t)activations);
}
#else
constexpr int kMostWeight = 127;   // bytes of both are signed
inline Ints multiply_four(Ints total, Bytes weights, Ints activations) {
    const int8x16_t left = (int8x16_t)weights, right = (int8x16_t)activations;
#if defined(__ARM_FEATURE_DOTPROD)
    return (Ints)vdotq_s32((int32x4_t)total, left, right);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(left), vget_low_s8(right)), high = vmull_high_s8(left, right);
    return (Ints)vpadalq_s16((int32x4_t)total, vpaddq_s16(low, high));
#endif
}
#endif

#elif defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define PAWL_PAIR_PRODUCTS
constexpr int kMostWeight = 32767 / (2 * 127);   // for a pair of products in 16 bits
#if defined(__AVX512BW__)
inline Ints multiply_pairs(Bytes weights, Ints activations) {
    return (Ints)_mm512_maddubs_epi16((__m512i)weights, (__m512i)activations);
}
inline Ints add_shorts(Ints a, Ints b) { return (Ints)_mm512_add_epi16((__m512i)a, (__m512i)b); }
inline Ints add_pairs(Ints shorts) { return (Ints)_mm512_madd_epi16((__m512i)shorts, _mm512_set1_epi16(1)); }
#else
inline Ints multiply_pairs(Bytes weights, Ints activations) {
    return (Ints)_mm256_maddubs_epi16((__m256i)weights, (__m256i)activations);
}
inline Ints add_shorts(Ints a, Ints b) { return (Ints)_mm256_add_epi16((__m256i)a, (__m256i)b); }
inline Ints add_pairs(Ints shorts) { return (Ints)_mm256_madd_epi16((__m256i)shorts, _mm256_set1_epi16(1)); }
#endif
#endif

// total + the products of `kSteps` vectors of weights, none above kLargest, with four activations each, which are the
// same ones for every lane.
template <int kLargest, int kSteps>
inline Ints dot_bytes(Ints total, const Bytes* weights, const Unit* activations) {
    const auto spread = [&](int step) { return Ints{} + int32_t(activations[step]); };
#if defined(PAWL_BYTE_PRODUCTS) || defined(PAWL_PAIR_PRODUCTS)
    if constexpr (kLargest > kMostWeight) {
        // Too much for one product: the halves of each byte by themselves.
        const Bytes nibbles = Bytes{} + 0x0f0f0f0fu;
        Bytes low[kSteps], high[kSteps];
#pragma GCC unroll 8
        for (int step = 0; step < kSteps; ++step) {
            low[step] = weights[step] & nibbles;
            high[step] = (weights[step] >> 4) & nibbles;
        }
        return dot_bytes<15, kSteps>(total, low, activations) + (dot_bytes<15, kSteps>(Ints{}, high, activations) << 4);
    }
#endif
#if defined(PAWL_BYTE_PRODUCTS)
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) total = multiply_four(total, weights[step], spread(step));
#elif defined(PAWL_PAIR_PRODUCTS)
    constexpr int kMost = std::max(kMostWeight / kLargest, 1);   // pairs of products that a sum of 16 bits holds
    constexpr int kGroup = kMost >= kSteps ? kSteps : kMost >= 4 ? 4 : kMost >= 2 ? 2 : 1;
#pragma GCC unroll 8
    for (int first = 0; first < kSteps; first += kGroup) {
        Ints sum = multiply_pairs(weights[first], spread(first));
#pragma GCC unroll 8
        for (int step = first + 1; step < first + kGroup; ++step)
            sum = add_shorts(sum, multiply_pairs(weights[step], spread(step)));
        total += add_pairs(sum);
    }
#else
    for (int step = 0; step < kSteps; ++step)
        for (int i = 0; i < 4; ++i)
            total += (Ints)((weights[step] >> (8 * i)) & 255u) * int32_t(int8_t(spread(step)[0] >> (8 * i)));
#endif
    return total;
}

// Of whole numbers, where no order matters.
#if defined(__AVX512F__)
inline int32_t sum_of_lanes(Ints value) { return _mm512_reduce_add_epi32((__m512i)value); }
inline int32_t maximum_of_lanes(Ints value) { return _mm512_reduce_max_epi32((__m512i)value); }
#elif defined(__AVX2__)
template <class Fold>
inline int32_t fold_lanes(Ints value, Fold&& fold) {
    const __m128i four = fold(_mm256_castsi256_si128((__m256i)value), _mm256_extracti128_si256((__m256i)value, 1));
    const __m128i two = fold(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(fold(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline int32_t sum_of_lanes(Ints value) {
    return fold_lanes(value, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
}
inline int32_t maximum_of_lanes(Ints value) {
    return fold_lanes(value, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
}
#elif defined(__aarch64__)
inline int32_t sum_of_lanes(Ints value) { return vaddvq_s32((int32x4_t)value); }
inline int32_t maximum_of_lanes(Ints value) { return vmaxvq_s32((int32x4_t)value); }
#else
inline int32_t sum_of_lanes(Ints value) {
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
    return sum;
}
inline int32_t maximum_of_lanes(Ints value) {
    int32_t highest = value[0];
    for (int lane = 1; lane < kLanes; ++lane) highest = std::max(highest, value[lane]);
    return highest;
}
#endif

inline float float_of_half(uint16_t half) {
    const uint32_t rest = half & 0x7fffu;
    // The exponent of a half has 112 less; without one it counts in 2 ** -24. Beyond all numbers stays there.
    const float magnitude = rest < 0x400 ? float(rest) * 5.9604644775390625e-8f
                                         : float_of_bits((rest << 13) + (rest < 0x7c00 ? 0x38000000u : 0x70000000u));
    return float_of_bits(bits_of_float(magnitude) | uint32_t(half & 0x8000u) << 16);
}

// kLanes numbers of half precision.
inline Floats load_halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
#else
    uint16_t halves[kLanes];
    std::memcpy(halves, from, sizeof(halves));
    Floats value;
    for (int i = 0; i < kLanes; ++i) value[i] = float_of_half(halves[i]);
    return value;
#endif
}

// kLanes small whole numbers, of one byte each.
template <class Small>
inline Floats load_small(const uint8_t* from) {
    typedef Small Smalls __attribute__((vector_size(kLanes)));
    Smalls value;
    std::memcpy(&value, from, sizeof(value));
    return __builtin_convertvector(__builtin_convertvector(value, Ints), Floats);
}

}  // namespace pawl
