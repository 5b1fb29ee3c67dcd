// GGML's blocks of one group, to plain numbers and back, to the bit. Numbers of two bytes are little-endian.
//
//     Q4_0, Q5_0, Q8_0, IQ4_NL   d, [5 bits: high u32], low [16] (8 bits: [32] signed)
//     Q4_1, Q5_1                 d, least, [5 bits: high u32], low [16]
//     Q4_K, Q5_K                 d, dmin, scales [12], [5 bits: high [32]], low [4][32]
//     Q6_K                       low [2][64], high [2][32], scales [16], d
#pragma once

#include "blocks.h"

namespace pawl {

// Walks over a block's bytes: copies them to numbers, or numbers to them.
template <bool kWrites>
class BlockBytes {
public:
    typedef typename std::conditional<kWrites, uint8_t, const uint8_t>::type Byte;
    explicit BlockBytes(Byte* at) : at_(at) {}

    template <class Value>
    void move(Value* values, int count) {
        const size_t bytes = sizeof(Value) * size_t(count);
        if constexpr (kWrites)
            std::memcpy(at_, values, bytes);
        else
            std::memcpy(values, at_, bytes);
        at_ += bytes;
    }

private:
    Byte* at_;
};

// `bits` bits of a quant, from `from` up, and of `part` from `at` up: the same ones.
template <bool kWrites, class Part>
inline void share_bits(uint8_t& quant, int from, Part& part, int at, int bits) {
    const Part mask = Part((Part(1) << bits) - 1);
    if (kWrites)
        part = Part(part | (Part(quant >> from) & mask) << at);
    else
        quant = uint8_t(quant | (part >> at & mask) << from);
}

// The 12 bytes of eight scales and eight leasts of six bits.
template <bool kWrites>
void move_six_bits(Group& group, uint8_t* packed) {
    for (int i = 0; i < 4; ++i) {
        share_bits<kWrites>(group.scales[i], 0, packed[i], 0, 6);
        share_bits<kWrites>(group.leasts[i], 0, packed[i + 4], 0, 6);
        share_bits<kWrites>(group.scales[i + 4], 0, packed[i + 8], 0, 4);
        share_bits<kWrites>(group.leasts[i + 4], 0, packed[i + 8], 4, 4);
        share_bits<kWrites>(group.scales[i + 4], 4, packed[i], 6, 2);
        share_bits<kWrites>(group.leasts[i + 4], 4, packed[i + 4], 6, 2);
    }
}

template <class L, bool kWrites>
void move_plain(Group& group, BlockBytes<kWrites> block) {
    block.move(&group.d, 1);
    if (L::kLeast) block.move(&group.least, 1);
    if constexpr (L::kBits == 8) {
        for (uint8_t* quant = group.quants; kWrites && quant < group.quants + 32; ++quant) *quant ^= 0x80;
        block.move(group.quants, 32);
        for (uint8_t* quant = group.quants; !kWrites && quant < group.quants + 32; ++quant) *quant ^= 0x80;
        return;
    }
    uint32_t high = 0;
    uint8_t low[16] = {};
    for (int i = 0; kWrites && i < 32; ++i) {
        share_bits<true>(group.quants[i], 0, low[i % 16], i / 16 * 4, 4);
        share_bits<true>(group.quants[i], 4, high, i, 1);
    }
    if (L::kBits == 5) block.move(&high, 1);
    block.move(low, 16);
    for (int i = 0; !kWrites && i < 32; ++i) {
        share_bits<false>(group.quants[i], 0, low[i % 16], i / 16 * 4, 4);
        share_bits<false>(group.quants[i], 4, high, i, 1);
    }
}

template <class L, bool kWrites>
void move_k(Group& group, BlockBytes<kWrites> block) {
    uint8_t packed[12] = {}, high[32] = {}, low[128] = {};
    const auto share = [&] {
        move_six_bits<kWrites>(group, packed);
        for (int i = 0; i < 256; ++i) {
            share_bits<kWrites>(group.quants[i], 0, low[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4);
            if (L::kBits == 5) share_bits<kWrites>(group.quants[i], 4, high[i % 32], i / 32, 1);
        }
    };
    if (kWrites) share();
    block.move(&group.d, 1), block.move(&group.least, 1), block.move(packed, 12);
    if (L::kBits == 5) block.move(high, 32);
    block.move(low, 128);
    if (!kWrites) share();
}

template <bool kWrites>
void move_q6_k(Group& group, BlockBytes<kWrites> block) {
    uint8_t low[128] = {}, high[64] = {};
    const auto share = [&] {
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, quarter = i / 32 % 4, place = i % 32;
            share_bits<kWrites>(group.quants[i], 0, low[half * 64 + quarter % 2 * 32 + place], quarter / 2 * 4, 4);
            share_bits<kWrites>(group.quants[i], 4, high[half * 32 + place], quarter * 2, 2);
        }
    };
    if (kWrites) share();
    block.move(low, 128), block.move(high, 64), block.move(group.scales, 16), block.move(&group.d, 1);
    if (!kWrites) share();
}

template <class L, bool kWrites>
void move_group(Group& group, BlockBytes<kWrites> block) {
    if constexpr (L::kScales == Scales::kTwoBytes)
        move_q6_k(group, block);
    else if constexpr (L::kSuper)
        move_k<L>(group, block);
    else
        move_plain<L>(group, block);
}

template <class L>
void read_group(const uint8_t* from, Group& group) {
    group = Group{};
    move_group<L>(group, BlockBytes<false>(from));
}

template <class L>
void write_group(Group group, uint8_t* to) {
    move_group<L>(group, BlockBytes<true>(to));
}

}  // namespace pawl
