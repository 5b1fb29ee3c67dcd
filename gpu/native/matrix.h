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

// Zeroed, aligned memory that asks for huge pages: a step walks all weights, and small pages would miss the TLB. Large
// pieces are mapped by themselves: what replaced weights had is the system's again as soon as they are freed, where a
// heap would keep it for the thread that had loaded them.
class Memory {
public:
    Memory() = default;
    explicit Memory(int64_t bytes) {
        // Room behind the end: tiles fetch ahead of what they read.
        const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
        size_ = size_t(rounded_up(bytes + 64, alignment));
#if defined(__linux__)
        if (alignment == kHugePage) {
            map();
            return;
        }
#endif
        data_ = std::aligned_alloc(size_t(alignment), size_);
        if (data_ == nullptr) throw std::bad_alloc();
        std::memset(data_, 0, size_);
    }
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(mapped_, other.mapped_);
        return *this;
    }
    ~Memory() {
#if defined(__linux__)
        if (mapped_ != nullptr) {
            munmap(mapped_, size_ + size_t(kHugePage));
            return;
        }
#endif
        std::free(data_);
    }

    template <class Value>
    Value* as() const {
        return static_cast<Value*>(data_);
    }

private:
    static constexpr int64_t kHugePage = 2 << 20;

#if defined(__linux__)
    // The system gives addresses that are multiples of a small page: one huge page more has a multiple of its own.
    void map() {
        void* got = mmap(nullptr, size_ + size_t(kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        mapped_ = got;
        data_ = reinterpret_cast<void*>(rounded_up(int64_t(reinterpret_cast<intptr_t>(got)), kHugePage));
        madvise(data_, size_, MADV_HUGEPAGE);
    }
#endif

    void* data_ = nullptr;
    void* mapped_ = nullptr;   // where a mapping of `size_` bytes and one huge page begins; null: it is the heap's
    size_t size_ = 0;
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
