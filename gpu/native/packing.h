// How keys and values become panels: units are turned, and elements of two rows made neighbours.
#pragma once

#include "element.h"

namespace pawl {

#if defined(__AVX512F__)
// 4 units from each of 16 rows, to 4 rows of a panel.
inline void transpose_four(const char* const* rows, int64_t offset, Unit* to) {
    // Quarter q of a[j]: the units of row 4 q + j.
    __m512i a[4], b[4];
    for (int j = 0; j < 4; ++j) {
        const auto quarter = [&](int q) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * q + j] + offset));
        };
        a[j] = _mm512_castsi128_si512(quarter(0));
        a[j] = _mm512_inserti32x4(a[j], quarter(1), 1);
        a[j] = _mm512_inserti32x4(a[j], quarter(2), 2);
        a[j] = _mm512_inserti32x4(a[j], quarter(3), 3);
    }
    for (int j = 0; j < 4; j += 2) {
        b[j] = _mm512_unpacklo_epi32(a[j], a[j + 1]);
        b[j + 1] = _mm512_unpackhi_epi32(a[j], a[j + 1]);
    }
    for (int half = 0; half < 2; ++half) {
        Unit* row = to + 2 * half * kPanel;
        _mm512_storeu_si512(row, _mm512_unpacklo_epi64(b[half], b[half + 2]));
        _mm512_storeu_si512(row + kPanel, _mm512_unpackhi_epi64(b[half], b[half + 2]));
    }
}

inline void transpose_16(const char* const* rows, int64_t offset, Unit* to) {
    for (int four = 0; four < 16; four += 4) transpose_four(rows, offset + four * 4, to + four * kPanel);
}
#endif

#if defined(__AVX512BW__)
// 32 elements of two rows, made neighbours: 32 units.
struct Paired {
    __m512i units[2];
};
inline Paired paired(const void* first, const void* last) {
    Words places{};
    for (int i = 0; i < kLanes; ++i) places[i] = uint32_t(i) | uint32_t(i + 32) << 16;
    const __m512i early = (__m512i)places, late = (__m512i)(places + 0x00100010u);
    const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(last);
    return {{_mm512_permutex2var_epi16(a, early, b), _mm512_permutex2var_epi16(a, late, b)}};
}
#endif

// `count` units of one element of each row: of `first` in the low half.
template <class Element>
void pair_up(const typename Element::Stored* __restrict first, const typename Element::Stored* __restrict last,
             int64_t count, Unit* __restrict to) {
    if constexpr (Element::kPerUnit == 1) {
        std::memcpy(to, first, size_t(count) * 4);
    } else {
#if defined(__AVX512BW__)
        if (count == kPanel) {
            const Paired pairs = paired(first, last);
            _mm512_storeu_si512(to, pairs.units[0]);
            _mm512_storeu_si512(to + kLanes, pairs.units[1]);
            return;
        }
#endif
        for (int64_t i = 0; i < count; ++i) to[i] = uint32_t(first[i]) | uint32_t(last[i]) << 16;
    }
}

}  // namespace pawl
