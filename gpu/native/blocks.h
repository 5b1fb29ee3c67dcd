// The quantised formats of GGUF files that are computed as they are stored: GGML's blocks of a row, and the same bits
// in panels of 32 outputs, as the kernels read them.
//
// A row is groups of 32 inputs, of the "K" formats of 256, and these are blocks of 32. A weight is
//
//     scale * (quant - kOffset)      where there is no `least`
//     scale * quant + least          elsewhere
//
// with a scale (and a least) of its own for each output and block; Q6_K has two scales, for 16 inputs each. In a panel:
//
//     group   of K formats d [32] half, and dmin [32] half where there is a least; then its blocks
//     block   low    [4][32][4]: two steps of four inputs, s and s + 4, in the halves of a byte; 8 bits: [8][32][4]
//             high   5 bits: [32][4], bit s is of step s; 6 bits: [2][32][4], bits 2 s of the steps s and s + 4
//             scale  [32] half, and least [32] half; Q4_K, Q5_K: [32] bytes each; Q6_K: [2][32] signed bytes
#pragma once

#include "bytes.h"

namespace pawl {

constexpr int kBlockInputs = 32;
constexpr int kBlockSteps = 8;
constexpr int kStepBytes = kPanel * 4;

// One group of one output, in plain numbers.
struct Group {
    uint8_t quants[8 * kBlockInputs];
    uint16_t d = 0, least = 0;
    uint8_t scales[16], leasts[8];
};

enum class Scales { kHalf, kHalfAndLeast, kBytes, kTwoBytes };

template <int kBitsOf, int kOffsetOf, Scales kScalesOf, bool kTableOf = false>
struct Layout {
    static constexpr int kBits = kBitsOf, kOffset = kOffsetOf;
    static constexpr Scales kScales = kScalesOf;
    static constexpr bool kTable = kTableOf;   // a quant is a place in a table
    static constexpr bool kLeast = kScales == Scales::kHalfAndLeast || kScales == Scales::kBytes;
    static constexpr bool kSuper = kScales == Scales::kBytes || kScales == Scales::kTwoBytes;
    static constexpr int kBlocks = kSuper ? 8 : 1;
    static constexpr int kLargest = kTable ? 255 : (1 << kBits) - 1;

    static constexpr int kHigh = kStepBytes * (kBits == 8 ? 8 : 4);
    static constexpr int kScale = kHigh + kStepBytes * (kBits % 4);
    static constexpr int kSecond = kScale + kPanel * (kSuper ? 1 : 2);   // the least, or the second scale
    static constexpr int kBlockBytes = kScale + kPanel * (kScales == Scales::kHalfAndLeast ? 4 : 2);
    static constexpr int kHeader = kSuper ? kPanel * (kLeast ? 4 : 2) : 0;
    static constexpr int kGroupBytes = kHeader + kBlocks * kBlockBytes;
    static constexpr int kStoredBytes = kGroupBytes / kPanel - (kScales == Scales::kBytes ? 4 : 0);   // GGML's

    // The weights of kLanes outputs from `lane`, step by step.
    static void unpack(const uint8_t* block, int lane, Bytes* steps) {
        const uint8_t* at = block + lane * 4;
        const Bytes nibbles = Bytes{} + 0x0f0f0f0fu;
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) {
            const Bytes both = load_bytes(at + s * kStepBytes);
            steps[s] = kBits == 8 ? both : both & nibbles;
            steps[s + 4] = kBits == 8 ? load_bytes(at + (s + 4) * kStepBytes) : (both >> 4) & nibbles;
            if constexpr (kBits == 5) {
                const Bytes high = load_bytes(at + kHigh), bit = Bytes{} + 0x10101010u;
                steps[s] |= (high << (4 - s)) & bit;
                steps[s + 4] |= (high >> s) & bit;
            }
            if constexpr (kBits == 6) {
                const Bytes first = load_bytes(at + kHigh), second = load_bytes(at + kHigh + kStepBytes);
                const Bytes bits = Bytes{} + 0x30303030u;
                steps[s] |= (s < 2 ? first << (4 - 2 * s) : first >> (2 * s - 4)) & bits;
                steps[s + 4] |= (s < 2 ? second << (4 - 2 * s) : second >> (2 * s - 4)) & bits;
            }
            if constexpr (kTable) steps[s] = looked_up(steps[s]), steps[s + 4] = looked_up(steps[s + 4]);
        }
    }

    // Put a group of one output into its column, or get it from there.
    static void put(const Group& group, uint8_t* panel, int column) {
        if (kSuper) put_half(panel, column, group.d);
        if (kSuper && kLeast) put_half(panel + kPanel * 2, column, group.least);
        for (int b = 0; b < kBlocks; ++b) {
            uint8_t* block = panel + kHeader + b * kBlockBytes;
            for (int s = 0; s < (kBits == 8 ? 8 : 4); ++s) {
                const uint32_t quants = word(group, b, s), later = kBits == 8 ? 0 : word(group, b, s + 4);
                put_word(block + s * kStepBytes, column, kBits == 8 ? quants : (quants & kNibbles) | (later & kNibbles) << 4);
            }
            for (int h = 0; h < kBits % 4; ++h) {
                uint32_t high = 0;
                for (int s = 0; s < kHighSteps; ++s)
                    high |= (word(group, b, h * kHighSteps + s) >> 4 & kHighMask) << s * (8 / kHighSteps);
                put_word(block + kHigh + h * kStepBytes, column, high);
            }
            put_scales(group, b, block, column);
        }
    }
    static void get(const uint8_t* panel, int column, Group& group) {
        if (kSuper) group.d = half(panel, column);
        if (kSuper && kLeast) group.least = half(panel + kPanel * 2, column);
        for (int b = 0; b < kBlocks; ++b) {
            const uint8_t* block = panel + kHeader + b * kBlockBytes;
            for (int s = 0; s < kBlockSteps; ++s) {
                uint32_t quants = word(block + (kBits == 8 ? s : s % 4) * kStepBytes, column);
                if (kBits != 8) quants = quants >> (s / 4 * 4) & kNibbles;
                if constexpr (kBits % 4 != 0) {
                    const uint32_t high = word(block + kHigh + s / kHighSteps * kStepBytes, column);
                    quants |= (high >> s % kHighSteps * (8 / kHighSteps) & kHighMask) << 4;
                }
                std::memcpy(group.quants + b * kBlockInputs + s * 4, &quants, 4);
            }
            get_scales(block, b, column, group);
        }
    }

    // The weight of input `index` of a group, as its quantisation means it.
    static float value(const Group& group, int index) {
        const int block = index / kBlockInputs;
        const int quant = kTable ? looked_up(group.quants[index]) : group.quants[index];
        float scale = float_of_half(group.d), least = kLeast ? float_of_half(group.least) : 0.0f;
        if (kScales == Scales::kBytes) scale *= float(group.scales[block]), least *= -float(group.leasts[block]);
        if (kScales == Scales::kTwoBytes) scale *= float(int8_t(group.scales[index / 16]));
        return kLeast ? scale * float(quant) + least : scale * float(quant - kOffset);
    }

private:
    static constexpr uint32_t kNibbles = 0x0f0f0f0f;
    static constexpr int kHighSteps = kBits == 6 ? 4 : 8;   // whose further bits share a byte
    static constexpr uint32_t kHighMask = kBits == 6 ? 0x03030303 : 0x01010101;

    static uint32_t word(const Group& group, int block, int step) {
        uint32_t value;
        std::memcpy(&value, group.quants + block * kBlockInputs + step * 4, 4);
        return value;
    }
    static uint32_t word(const uint8_t* from, int column) {
        uint32_t value;
        std::memcpy(&value, from + column * 4, 4);
        return value;
    }
    static void put_word(uint8_t* to, int column, uint32_t value) { std::memcpy(to + column * 4, &value, 4); }
    static void put_half(uint8_t* to, int column, uint16_t value) { std::memcpy(to + column * 2, &value, 2); }
    static uint16_t half(const uint8_t* from, int column) {
        uint16_t value;
        std::memcpy(&value, from + column * 2, 2);
        return value;
    }
    static void put_scales(const Group& group, int b, uint8_t* block, int column) {
        if (kScales == Scales::kBytes)
            block[kScale + column] = group.scales[b], block[kSecond + column] = group.leasts[b];
        if (kScales == Scales::kTwoBytes)
            block[kScale + column] = group.scales[2 * b], block[kSecond + column] = group.scales[2 * b + 1];
        if (!kSuper) put_half(block + kScale, column, group.d);
        if (kScales == Scales::kHalfAndLeast) put_half(block + kSecond, column, group.least);
    }
    static void get_scales(const uint8_t* block, int b, int column, Group& group) {
        if (kScales == Scales::kBytes)
            group.scales[b] = block[kScale + column], group.leasts[b] = block[kSecond + column];
        if (kScales == Scales::kTwoBytes)
            group.scales[2 * b] = block[kScale + column], group.scales[2 * b + 1] = block[kSecond + column];
        if (!kSuper) group.d = half(block + kScale, column);
        if (kScales == Scales::kHalfAndLeast) group.least = half(block + kSecond, column);
    }

    // What IQ4_NL's quants stand for, and kOffset more.
    static constexpr uint8_t kValues[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
    static uint8_t looked_up(uint8_t quant) { return kValues[quant & 15]; }
    static Bytes looked_up(Bytes quants) {
#if defined(__AVX512BW__)
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kValues));
        return (Bytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)quants);
#elif defined(__AVX2__) && !defined(__AVX512F__)
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kValues));
        return (Bytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)quants);
#elif defined(__aarch64__)
        return (Bytes)vqtbl1q_u8(vld1q_u8(kValues), (uint8x16_t)quants);
#else
        uint8_t bytes[sizeof(quants)];
        std::memcpy(bytes, &quants, sizeof(bytes));
        for (uint8_t& byte : bytes) byte = looked_up(byte);
        return load_bytes(bytes);
#endif
    }
};

// What a weight comes in: elements, or blocks; numbers of `GGMLQuantizationType`.
enum class Format : int32_t {
    kElements = -1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kIQ4_NL = 20
};

// work(layout) of the format's layout; false where there is none of this number.
template <class Work>
bool with_layout(Format format, Work&& work) {
    switch (format) {
        case Format::kQ4_0: work(Layout<4, 8, Scales::kHalf>()); return true;
        case Format::kQ4_1: work(Layout<4, 0, Scales::kHalfAndLeast>()); return true;
        case Format::kQ5_0: work(Layout<5, 16, Scales::kHalf>()); return true;
        case Format::kQ5_1: work(Layout<5, 0, Scales::kHalfAndLeast>()); return true;
        case Format::kQ8_0: work(Layout<8, 128, Scales::kHalf>()); return true;
        case Format::kQ4_K: work(Layout<4, 0, Scales::kBytes>()); return true;
        case Format::kQ5_K: work(Layout<5, 0, Scales::kBytes>()); return true;
        case Format::kQ6_K: work(Layout<6, 32, Scales::kTwoBytes>()); return true;
        case Format::kIQ4_NL: work(Layout<4, 128, Scales::kHalf, true>()); return true;
        case Format::kElements: break;
    }
    return false;
}

}  // namespace pawl
