// Products with weights that stay as a GGUF file has them: bytes times bytes.
//
// The input of such a product is a row of bytes as well: each block of 32 elements is divided by 1/127 of its largest
// and rounded. So for one output
//
//     sum over blocks, in order:  row scale * ( weight scale * (sum of products) + least * (sum of the row) )
//
// where both inner sums are whole numbers, and exact; the two products outside are rounded, the two additions are fused
// with one of them. Every batch, whatever its size, is computed by this one kernel: a row's bits are its own.
//
//     row    [blocks] of: 32 bytes, scale float32, the bytes' sum float32, the sums of their two halves int32
//     panel  see blocks.h
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "blocks.h"
#include "memory.h"

namespace pawl {

// Rows that share the unpacking of a block.
constexpr int kByteRows = 32;

struct ByteBlock {
    Unit bytes[kBlockSteps];
    float scale, sum;
    int32_t halves[2];
};
static_assert(sizeof(ByteBlock) == 48);
constexpr int64_t kByteBlockUnits = sizeof(ByteBlock) / sizeof(Unit);

inline int64_t byte_units(int64_t elements) { return padded(elements) / kBlockInputs * kByteBlockUnits; }

// 32 numbers as bytes; a number that is not finite makes the scale NaN.
void to_bytes(const float* values, ByteBlock& to);

// `count` elements, a multiple of 32.
template <class Element>
void to_bytes(const typename Element::Stored* from, int64_t count, ByteBlock* to) {
    for (int64_t first = 0; first < count; first += kBlockInputs, ++to) {
        alignas(64) float values[kBlockInputs];
        for (int i = 0; i < kBlockInputs; ++i) values[i] = Element::widen(from[first + i]);
        to_bytes(values, *to);
    }
}

// Some rows of outputs of a matrix that came in one format. Its panels need not be neighbours in the matrix.
class QuantisedPart {
public:
    // In memory of `arena`. Throws std::bad_alloc. `inputs` is whole groups of the format, and that is one there is.
    QuantisedPart(Arena& arena, Format format, int64_t rows, int64_t inputs);

    // GGML's blocks of all rows, to the panels and back.
    void pack(const uint8_t* from);
    void unpack(uint8_t* to) const;
    int64_t stored_bytes() const;

    const uint8_t* panel(int64_t index) const { return data_ + index * panel_bytes_; }
    Format format() const { return format_; }
    int64_t panels() const { return padded(rows_) / kPanel; }

private:
    template <class Work>
    void each_group(Work&& work) const;

    Format format_;
    int64_t rows_, inputs_, panel_bytes_ = 0;
    uint8_t* data_;
};

// Whether `inputs` is whole groups of a format that is computed.
bool computable(Format format, int64_t inputs);

struct QuantisedPanel {
    const uint8_t* at = nullptr;   // null: this panel is not quantised
    Format format{};
};

// c [rows][32] = rows `stride` units apart times the panel of `inputs` inputs.
void multiply_bytes(const Unit* from, int64_t stride, int rows, const QuantisedPanel& panel, int64_t inputs, float* c);

// The weights of one column.
void read_column(const QuantisedPanel& panel, int64_t column, int64_t inputs, float* to);

}  // namespace pawl
