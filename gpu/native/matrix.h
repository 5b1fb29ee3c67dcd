// A weight matrix [outputs, inputs] in the order in which the kernels read it: panels of 32 outputs,
//
//     panel p: [depth][32] units, output p * 32 + c in column c
//
// one after the other, so that a product streams through memory. Missing outputs and inputs are zero. Some panels, or
// all of them, may be quantised instead (quantised.h).
#pragma once

#include "block_tile.h"
#include "quantised.h"

namespace pawl {

// What is wrong with the arguments of a call; the message goes to the user.
struct Refused {
    std::string reason;
};

// Whether elements are made of quantised panels to be multiplied (made.h), or bytes of what meets them (quantised.h).
template <class Element>
constexpr bool kMade = kInBlocks<Element>;

template <class Element>
class Matrix {
public:
    Matrix() = default;
    Matrix(int64_t outputs, int64_t inputs)
        : inputs(inputs), depth(units<Element>(padded(inputs))), panels(padded(outputs) / kPanel) {}

    int64_t inputs = 0;
    int64_t depth = 0;
    int64_t panels = 0;

    const Unit* panel(int64_t index) const { return elements_ + index * depth * kPanel; }
    // Null where the panel is not quantised.
    const QuantisedPanel* quantised(int64_t index) const {
        const bool is = !quantised_.empty() && quantised_[size_t(index)].at != nullptr;
        return is ? &quantised_[size_t(index)] : nullptr;
    }
    // Whether no panel is quantised, or not all are.
    bool has_elements() const { return elements_ != nullptr; }

    // Copy `rows` rows of `columns` elements; row r becomes output first + r. With `every` = 2, panels of the source
    // become every second panel, `first` then choosing the one of the pair by its panel (0 or 32). The first rows have
    // memory taken for all: of `arena`, which the matrix must not outlive, or, where that is null, of its own.
    void pack(Arena* arena, const typename Element::Stored* from, int64_t rows, int64_t columns, int64_t first,
              int64_t every) {
        if (!has_elements()) take(arena, panels * depth * kPanel * int64_t(sizeof(Unit)));
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

    // As `pack`, of a GGUF file's blocks, `bytes` of them, to memory of `arena`. Throws Refused where they are not the
    // rows' blocks, or the rows do not fill panels: only the matrix's last ones may end within one.
    void pack_blocks(Arena& arena, Format format, const uint8_t* from, int64_t bytes, int64_t rows, int64_t columns,
                     int64_t first, int64_t every) {
        const auto require = [](bool holds, const char* what) {
            if (!holds) throw Refused{what};
        };
        require(columns == inputs && computable(format, columns), "blocks of this format do not fit the rows");
        require(first % kPanel == 0, "quantised rows begin within a panel");
        QuantisedPart part(arena, format, rows, columns);
        require(bytes == part.stored_bytes(), "blocks of this format have another number of bytes");
        require(rows % kPanel == 0 || first / kPanel + part.panels() * every >= panels, "quantised rows end within a panel");
        part.pack(from);
        quantised_.resize(size_t(panels));
        for (int64_t i = 0; i < part.panels(); ++i)
            quantised_[size_t(first / kPanel + i * every)] = QuantisedPanel{part.panel(i), format};
        parts_.push_back(Part{std::move(part), first, every});
    }

    // The inverse of `pack_blocks`, to the bit.
    void unpack_blocks(Format format, uint8_t* to, int64_t bytes, int64_t first, int64_t every) const {
        for (const Part& part : parts_) {
            if (part.first != first || part.every != every) continue;
            if (part.weights.format() != format || part.weights.stored_bytes() != bytes) break;
            return part.weights.unpack(to);
        }
        throw Refused{"these rows are not quantised so"};
    }

    // Elements of output `index`, widened.
    void read_output(int64_t index, int64_t columns, float* to) const {
        if (const QuantisedPanel* found = quantised(index / kPanel)) {
            read_column(*found, index % kPanel, columns, to);
            for (int64_t i = 0; kMade<Element> && i < columns; ++i) to[i] = Element::widen(Element::narrow(to[i]));
            return;
        }
        const Unit* from = panel(index / kPanel) + index % kPanel;
        for (int64_t i = 0; i < columns; ++i) {
            typename Element::Stored pair[Element::kPerUnit];
            std::memcpy(pair, from + i / Element::kPerUnit * kPanel, sizeof(pair));
            to[i] = Element::widen(pair[i % Element::kPerUnit]);
        }
    }

private:
    void take(Arena* arena, int64_t bytes) {
        if (arena == nullptr) memory_ = Memory(bytes);
        elements_ = arena == nullptr ? memory_.template as<Unit>() : reinterpret_cast<Unit*>(arena->take(bytes));
    }

    // Call work(column of the first row in its panel, first row, number of rows) for rows that share a panel.
    template <class Work>
    void by_panel(int64_t rows, int64_t first, int64_t every, Work&& work) const {
        for (int64_t begin = 0; begin < rows;) {
            const int64_t output = every == 1 ? first + begin : first + begin * every;
            const int64_t column = output % kPanel;
            const int64_t count = std::min(kPanel - column, rows - begin);
            work(elements_ + output / kPanel * depth * kPanel + column, begin, count);
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

    struct Part {
        QuantisedPart weights;
        int64_t first, every;   // as in `pack`
    };

    Unit* elements_ = nullptr;   // null as long as all rows are quantised
    Memory memory_;              // where they have their own
    std::vector<Part> parts_;
    std::vector<QuantisedPanel> quantised_;   // [panels], or empty
};

}  // namespace pawl
