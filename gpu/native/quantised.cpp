#include "quantised.h"

#include <cmath>

#include "block_scales.h"
#include "ggml.h"

namespace pawl {

void to_bytes(const float* values, ByteBlock& to) {
    // The bits of magnitudes have the order of the magnitudes, and what is not finite is above them all.
    Ints highest{};
    for (int i = 0; i < kBlockInputs; i += kLanes) {
        const Ints bits = load<Ints>(values + i) & 0x7fffffff;
        highest = bits > highest ? bits : highest;
    }
    const uint32_t largest_bits = uint32_t(maximum_of_lanes(highest));
    const float largest = float_of_bits(largest_bits);
    // What is smaller than any activation is none: its inverse would be infinite.
    const bool something = largest > 1e-30f && largest_bits < 0x7f800000;
    const float inverse = something ? 127.0f / largest : 0.0f;
    to.scale = something ? largest / 127.0f : largest_bits < 0x7f800000 ? 0.0f : std::nanf("");
    typedef int8_t Narrow __attribute__((vector_size(kLanes)));
    Ints sums[2] = {};
    for (int i = 0; i < kBlockInputs; i += kLanes) {
        // 1.5 * 2**23 more, and the nearest whole number is in the low bits of the mantissa; of two, the even one.
        const Ints whole = (Ints)(load<Floats>(values + i) * inverse + 12582912.0f) - 0x4b400000;
        sums[i / (kBlockInputs / 2)] += whole;
        const Narrow narrow = __builtin_convertvector(whole, Narrow);
        std::memcpy(reinterpret_cast<int8_t*>(to.bytes) + i, &narrow, sizeof(narrow));
    }
    for (int half = 0; half < 2; ++half) to.halves[half] = sum_of_lanes(sums[half]);
    to.sum = float(to.halves[0] + to.halves[1]);
}

namespace {

// A block's part of one row's kLanes outputs, without the row's scale.
template <class L>
Floats block_product(const Bytes* weights, const BlockScales& scales, const ByteBlock& row) {
    constexpr int kHalf = kBlockSteps / 2;
    const auto begin = [](int32_t sum) { return Ints{} - (Ints{} + sum) * L::kOffset; };
    if constexpr (L::kScales == Scales::kTwoBytes) {
        const Ints first = dot_bytes<L::kLargest, kHalf>(begin(row.halves[0]), weights, row.bytes);
        const Ints second = dot_bytes<L::kLargest, kHalf>(begin(row.halves[1]), weights + kHalf, row.bytes + kHalf);
        const Floats product = __builtin_convertvector(first, Floats) * scales.scale;
        return multiply_add(__builtin_convertvector(second, Floats), scales.second, product);
    }
    const Ints sum = dot_bytes<L::kLargest, kBlockSteps>(begin(row.halves[0] + row.halves[1]), weights, row.bytes);
    const Floats product = __builtin_convertvector(sum, Floats) * scales.scale;
    return L::kLeast ? multiply_add(scales.second, spread(row.sum), product) : product;
}

template <class L>
void multiply_panel(const Unit* from, int64_t stride, int rows, const uint8_t* group, int64_t groups, float* c) {
    std::fill(c, c + rows * kPanel, 0.0f);
    for (int64_t g = 0; g < groups; ++g, group += L::kGroupBytes) {
        for (int b = 0; b < L::kBlocks; ++b) {
            const uint8_t* block = group + L::kHeader + b * L::kBlockBytes;
            for (int64_t line = 0; line < L::kBlockBytes; line += 64) __builtin_prefetch(block + kBytesAhead + line, 0, 2);
            const Unit* inputs = from + (g * L::kBlocks + b) * kByteBlockUnits;
#pragma GCC unroll 8
            for (int lane = 0; lane < kPanel; lane += kLanes) {
                Bytes weights[kBlockSteps];
                L::unpack(block, lane, weights);
                const BlockScales scales = scales_of<L>(group, block, lane);
                float* to = c + lane;
                for (int row = 0; row < rows; ++row, to += kPanel) {
                    const auto& bytes = *reinterpret_cast<const ByteBlock*>(inputs + row * stride);
                    const Floats product = block_product<L>(weights, scales, bytes);
                    store(to, multiply_add(product, spread(bytes.scale), load<Floats>(to)));
                }
            }
        }
    }
}

}  // namespace

bool computable(Format format, int64_t inputs) {
    bool whole = false;
    return with_layout(format, [&](auto l) { whole = inputs % (decltype(l)::kBlocks * kBlockInputs) == 0; }) && whole;
}

void multiply_bytes(const Unit* from, int64_t stride, int rows, const QuantisedPanel& panel, int64_t inputs, float* c) {
    with_layout(panel.format, [&](auto l) {
        typedef decltype(l) L;
        const int64_t groups = inputs / (L::kBlocks * kBlockInputs);
        multiply_panel<L>(from, stride, rows, panel.at, groups, c);
    });
}

void read_column(const QuantisedPanel& panel, int64_t column, int64_t inputs, float* to) {
    with_layout(panel.format, [&](auto l) {
        typedef decltype(l) L;
        constexpr int kInputs = L::kBlocks * kBlockInputs;
        Group group;
        for (int64_t g = 0; g < inputs / kInputs; ++g) {
            L::get(panel.at + g * L::kGroupBytes, int(column), group);
            for (int i = 0; i < kInputs; ++i) to[g * kInputs + i] = L::value(group, i);
        }
    });
}

QuantisedPart::QuantisedPart(Arena& arena, Format format, int64_t rows, int64_t inputs)
    : format_(format), rows_(rows), inputs_(inputs) {
    with_layout(format, [&](auto l) {
        panel_bytes_ = inputs / (decltype(l)::kBlocks * kBlockInputs) * decltype(l)::kGroupBytes;
    });
    data_ = arena.take(panels() * panel_bytes_);
}

// work(layout, panel's group, column, where the group lies among the stored bytes of all rows)
template <class Work>
void QuantisedPart::each_group(Work&& work) const {
    with_layout(format_, [&](auto l) {
        typedef decltype(l) L;
        const int64_t groups = inputs_ / (L::kBlocks * kBlockInputs);
        for (int64_t row = 0; row < rows_; ++row)
            for (int64_t g = 0; g < groups; ++g) {
                uint8_t* at = data_ + row / kPanel * panel_bytes_ + g * L::kGroupBytes;
                work(l, at, int(row % kPanel), (row * groups + g) * L::kStoredBytes);
            }
    });
}

int64_t QuantisedPart::stored_bytes() const {
    int64_t bytes = 0;
    with_layout(format_, [&](auto l) {
        bytes = rows_ * (inputs_ / (decltype(l)::kBlocks * kBlockInputs)) * decltype(l)::kStoredBytes;
    });
    return bytes;
}

void QuantisedPart::pack(const uint8_t* from) {
    Group group;
    each_group([&](auto l, uint8_t* to, int column, int64_t offset) {
        read_group<decltype(l)>(from + offset, group);
        decltype(l)::put(group, to, column);
    });
}

void QuantisedPart::unpack(uint8_t* to) const {
    Group group;
    each_group([&](auto l, const uint8_t* from, int column, int64_t offset) {
        decltype(l)::get(from, column, group);
        write_group<decltype(l)>(group, to + offset);
    });
}

}  // namespace pawl
