// How keys and values become panels: units are turned, and elements of two rows made neighbours.
#pragma once

#include "element.h"

namespace pawl {

#if defined(__AVX512F__)
// 16 units from each of 16 rows, to 16 rows of a panel.
inline void transpose_16(const char* const* rows, int64_t offset, Unit* to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i] + offset);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // Now a[4 j + c] holds, in its 128-bit quarter q, unit 4 q + c of rows 4 j .. 4 j + 3.
    for (int c = 0; c < 4; ++c) {
        const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(to + c * kPanel, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(to + (4 + c) * kPanel, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(to + (8 + c) * kPanel, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(to + (12 + c) * kPanel, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

// `count` units of one element of each row: of `first` in the low half.
template <class Element>
void pair_up(const typename Element::Stored* __restrict first, const typename Element::Stored* __restrict last,
             int64_t count, Unit* __restrict to) {
    if constexpr (Element::kPerUnit == 1)
        std::memcpy(to, first, size_t(count) * 4);
    else
        for (int64_t i = 0; i < count; ++i) to[i] = uint32_t(first[i]) | uint32_t(last[i]) << 16;
}

}  // namespace pawl
