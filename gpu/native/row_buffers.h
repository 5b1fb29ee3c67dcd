// Rows that a step works on, in memory that grows with the largest batch seen.
#pragma once

#include "communicator.h"
#include "pool.h"
#include "quantised.h"

namespace pawl {

// Rows of fixed width that grow with the largest batch seen.
template <class Value>
class RowBuffer {
public:
    explicit RowBuffer(int64_t stride) : stride(stride) {}
    int64_t stride;
    Value* row(int64_t index) const { return data_ + index * stride; }
    void reserve(int64_t rows) {
        const int64_t bytes = rows * stride * int64_t(sizeof(Value));
        // Another decoder may have had it grow.
        if (ranks_ != nullptr) data_ = static_cast<Value*>(ranks_->reserve(buffer_, bytes));
        if (ranks_ != nullptr || rows <= rows_) return;
        rows_ = 0;   // also where there is no memory for more
        memory_ = Memory();
        memory_ = Memory(bytes);
        data_ = memory_.template as<Value>();
        rows_ = rows;
    }
    bool shared() const { return ranks_ != nullptr; }
    // Lie in this buffer of the ranks from now on.
    void share(Communicator* ranks, int buffer) { ranks_ = ranks, buffer_ = buffer; }
    // Make rows at least this long; what they held is gone.
    void widen(int64_t wanted) {
        if (wanted <= stride) return;
        stride = wanted;
        rows_ = 0;
    }

private:
    int64_t rows_ = 0;
    Value* data_ = nullptr;
    Memory memory_;
    Communicator* ranks_ = nullptr;
    int buffer_ = 0;
};

// Rows of a step, in blocks that threads have in turn.
struct Rows {
    int64_t count, blocks;
    int64_t begin(int64_t block) const { return part_begin(count, block, blocks); }
    int64_t block_of(int64_t row) const { return row * blocks / count; }
};

// Rows of elements, the inputs of products. Behind the elements there is room for the same row as bytes, which products
// with quantised weights take.
template <class Element>
class ElementRows : public RowBuffer<Unit> {
public:
    // Strides are an odd number of cache lines, so that rows of a tile fall into different sets.
    explicit ElementRows(int64_t elements)
        : RowBuffer<Unit>((rounded_up(units<Element>(padded(elements)) + byte_units(elements) + 16, 16) | 16)),
          bytes_at_(units<Element>(padded(elements)) + 16) {}

    void reserve(const Rows& rows) { RowBuffer<Unit>::reserve(rows.count + (rows.blocks - 1) * apart()); }
    // Of one of `rows`: as far from those of another block as `apart` says.
    Unit* bytes(const Rows& rows, int64_t index) const { return row(index + rows.block_of(index) * apart()) + bytes_at_; }
    // Make bytes of `count` elements of a row from `first`, both multiples of 32.
    void make_bytes(const Rows& rows, int64_t index, int64_t first, int64_t count) const {
        const auto* from = reinterpret_cast<const typename Element::Stored*>(row(index)) + first;
        to_bytes<Element>(from, count, reinterpret_cast<ByteBlock*>(bytes(rows, index)) + first / kBlockInputs);
    }
    // One row of `other` as it is, bytes included.
    void copy(const Rows& rows, int64_t index, const ElementRows& other, const Rows& others, int64_t from) const {
        std::memcpy(row(index), other.row(from), size_t(bytes_at_) * sizeof(Unit));
        std::memcpy(bytes(rows, index), other.bytes(others, from), size_t(stride - bytes_at_) * sizeof(Unit));
    }

private:
    // Products walk through bytes row by row, and a core that expects them to go on so takes some rows behind its last
    // one away from whoever writes them. Ranks, who may have other blocks, must find the rows of each other.
    int64_t apart() const { return shared() ? 0 : kApart; }
    static constexpr int64_t kApart = 32;

    int64_t bytes_at_;
};

}  // namespace pawl
