// Vectors of float32 and the few operations that differ between machines.
//
// Everything rests on one promise: the value of an element is a function of that element's inputs only, computed by
// the same operations in the same order whatever stands beside it. So the compiler may not fuse or reorder anything by
// itself (-ffp-contract=off, no fast-math); where a fused multiply-add is wanted it is written. Nor is there an operation
// whose order hangs on how wide vectors are: every machine that fuses multiply and add has the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pawl {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

template <class Vector, class Scalar>
inline Vector load(const Scalar* from) {
    static_assert(sizeof(Scalar) == 4, "lanes are 32 bits wide");
    Vector value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

template <class Vector, class Scalar>
inline void store(Scalar* to, Vector value) {
    static_assert(sizeof(Scalar) == 4, "lanes are 32 bits wide");
    std::memcpy(to, &value, sizeof(value));
}

inline Floats all(float value) { return Floats{} + value; }

template <class Vector>
inline Floats as_floats(Vector value) {
    return (Floats)value;
}

// a * b + c: rounded once where the machine can, twice elsewhere.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// The lanes folded in halves by `fold`.
template <class Fold>
inline float fold_lanes(Floats value, Fold&& fold) {
#if defined(__AVX512F__)
    const __m256 low = _mm512_castps512_ps256(value);
    const __m256 eight = fold(low, _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(value), 1)));
    const __m128 four = fold(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = fold(four, _mm_movehl_ps(four, four));
    return fold(two, _mm_shuffle_ps(two, two, 1))[0];
#elif defined(__aarch64__)
    const float32x2_t two = fold(vget_low_f32((float32x4_t)value), vget_high_f32((float32x4_t)value));
    return fold(two[0], two[1]);
#else
    float lanes[kLanes];
    store(lanes, value);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = fold(lanes[i], lanes[i + width]);
    return lanes[0];
#endif
}

inline float sum_of_lanes(Floats value) {
    return fold_lanes(value, [](auto a, auto b) { return a + b; });
}

// A sum along a row is kept in as many parts as the widest vectors have lanes: part i is of the elements i, i + 16, ...
constexpr int kParts = 16;

inline float sum_of_parts(Floats (&parts)[kParts / kLanes]) {
    for (int count = kParts / kLanes / 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) parts[i] += parts[i + count];
    return sum_of_lanes(parts[0]);
}

inline float maximum_of_lanes(Floats value) {
    return fold_lanes(value, [](auto a, auto b) { return a > b ? a : b; });
}

// 2 ** x, relative error below 2e-7; exactly 0 below -126, clamped at 2 ** 127.
inline Floats power_of_two(Floats x) {
    const Floats bounded = x > 127.0f ? all(127.0f) : x;
    // Adding 1.5 * 2**23 leaves the nearest integer in the low bits of the mantissa.
    const Floats shifted = bounded + 12582912.0f;
    const Floats rest = bounded - (shifted - 12582912.0f);
    Floats result = all(1.5403530e-4f);
    result = multiply_add(result, rest, all(1.3333558e-3f));
    result = multiply_add(result, rest, all(9.6181291e-3f));
    result = multiply_add(result, rest, all(5.5504109e-2f));
    result = multiply_add(result, rest, all(2.4022651e-1f));
    result = multiply_add(result, rest, all(6.9314718e-1f));
    result = multiply_add(result, rest, all(1.0f));
    // Those bits, moved, are added to the exponent; what is above them falls off.
    const Words scaled = (Words)result + ((Words)shifted << 23);
    return x < -126.0f ? all(0.0f) : as_floats(scaled);
}

// 1 / (1 + e ** -x)
inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + power_of_two(x * -1.44269504f)); }

}  // namespace pawl
