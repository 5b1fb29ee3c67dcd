// A weight matrix [outputs, inputs] in the order in which the kernels read it: panels of 32 outputs,
//
//     panel p: [depth][32] units, output p * 32 + c in column c
//
// one after the other, so that a product streams through memory. Missing outputs and inputs are zero.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "element.h"

namespace pawl {

// Zeroed, aligned memory that asks for huge pages: a step walks all weights, and small pages would miss the TLB.
class Memory {
public:
    Memory() = default;
    explicit Memory(int64_t bytes) {
        const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
        // Room behind the end: tiles fetch ahead of what they read.
        const size_t size = size_t(rounded_up(bytes + 64, alignment));
        data_ = std::aligned_alloc(size_t(alignment), size);
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (alignment == kHugePage) madvise(data_, size, MADV_HUGEPAGE);
#endif
        std::memset(data_, 0, size);
    }
    Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Memory& operator=(Memory&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Memory() { std::free(data_); }

    template <class Value>
    Value* as() const {
        return static_cast<Value*>(data_);
    }

private:
    static constexpr int64_t kHugePage = 2 << 20;
    void* data_ = nullptr;
};

template <class Element>
class Matrix {
public:
    Matrix() = default;
    Matrix(int64_t outputs, int64_t inputs)
        : depth(units<Element>(padded(inputs))),
          panels(padded(outputs) / kPanel),
          memory_(panels * depth * kPanel * int64_t(sizeof(Unit))) {}

    int64_t depth = 0;
    int64_t panels = 0;

    const Unit* panel(int64_t index) const { return memory_.template as<Unit>() + index * depth * kPanel; }

    // Copy `rows` rows of `columns` elements; row r becomes output first + r. With `every` = 2, panels of the source
    // become every second panel, `first` then choosing the one of the pair by its panel (0 or 32).
    void pack(const typename Element::Stored* from, int64_t rows, int64_t columns, int64_t first, int64_t every) {
        by_panel(rows, first, every, [&](Unit* panel, int64_t begin, int64_t count) {
            pack_columns(panel, from + begin * columns, count, columns);
        });
    }

    // The inverse of `pack`, to the bit.
    void unpack(typename Element::Stored* to, int64_t rows, int64_t columns, int64_t first, int64_t every) const {
        by_panel(rows, first, every, [&](const Unit* panel, int64_t begin, int64_t count) {
            for (int64_t row = 0; row < count; ++row)
                for (int64_t i = 0; i < columns; i += Element::kPerUnit)
                    std::memcpy(to + (begin + row) * columns + i, panel + i / Element::kPerUnit * kPanel + row,
                                size_t(std::min<int64_t>(Element::kPerUnit, columns - i)) * sizeof(*to));
        });
    }

    // Elements of output `index`, widened.
    void read_output(int64_t index, int64_t columns, float* to) const {
        const Unit* from = panel(index / kPanel) + index % kPanel;
        for (int64_t i = 0; i < columns; ++i) {
            typename Element::Stored pair[Element::kPerUnit];
            std::memcpy(pair, from + i / Element::kPerUnit * kPanel, sizeof(pair));
            to[i] = Element::widen(pair[i % Element::kPerUnit]);
        }
    }

private:
    // Call work(column of the first row in its panel, first row, number of rows) for rows that share a panel.
    template <class Work>
    void by_panel(int64_t rows, int64_t first, int64_t every, Work&& work) const {
        for (int64_t begin = 0; begin < rows;) {
            const int64_t output = every == 1 ? first + begin : first + begin * every;
            const int64_t column = output % kPanel;
            const int64_t count = std::min(kPanel - column, rows - begin);
            work(memory_.template as<Unit>() + output / kPanel * depth * kPanel + column, begin, count);
            begin += count;
        }
    }

    static void pack_columns(Unit* to, const typename Element::Stored* from, int64_t rows, int64_t columns) {
        const int64_t whole = columns / Element::kPerUnit;
        for (int64_t k = 0; k < whole; ++k)
            for (int64_t row = 0; row < rows; ++row)
                std::memcpy(to + k * kPanel + row, from + row * columns + k * Element::kPerUnit, sizeof(Unit));
        for (int64_t row = 0; row < rows && whole * Element::kPerUnit < columns; ++row)
            std::memcpy(to + whole * kPanel + row, from + (row + 1) * columns - 1, sizeof(typename Element::Stored));
    }

    Memory memory_;
};

}  // namespace pawl
