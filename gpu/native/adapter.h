// An adapter (LoRA) as the kernels read it: what it adds to each of a layer's four products.
//
//     out += expand (shrink row)      shrink [rank][inputs], expand [outputs][rank]
//
// The outputs of `expand` lie in the panels of the product's own matrix, so that a tile of the product goes on with the
// adapter's depth where it has ended with its own: one accumulator for each output, one order of sums.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "matrix.h"

namespace pawl {

enum class AdaptedProduct : int32_t { kQkv = 0, kOutput = 1, kGateUp = 2, kDown = 3 };
constexpr int kAdaptedProducts = 4;

// Inputs are whole rows; outputs are those that the decoder has itself.
struct AdapterSizes {
    int64_t layers, hidden, queries, inner;
    int64_t own_mixed, own_hidden, own_inner;
    bool operator==(const AdapterSizes& other) const {
        return layers == other.layers && hidden == other.hidden && queries == other.queries && inner == other.inner &&
               own_mixed == other.own_mixed && own_hidden == other.own_hidden && own_inner == other.own_inner;
    }
    int64_t inputs(AdaptedProduct product) const {
        return product == AdaptedProduct::kOutput ? queries : product == AdaptedProduct::kDown ? inner : hidden;
    }
};

class AnyAdapter {
public:
    virtual ~AnyAdapter() = default;
    // Copy what is added to one product: shrink [rank][inputs] and expand [outputs][rank], elements.
    virtual void load(int layer, int product, int64_t rank, const void* shrink, const void* expand) = 0;
};

template <class Element>
struct LowRank {
    struct Span {
        int64_t begin = 0, end = 0;
    };
    int64_t rank = 0;   // 0: nothing is added
    Matrix<Element> shrink, expand;
    std::vector<Span> spans;   // for each panel of expand, the units of its depth that are not all zero
};

template <class Element>
class Adapter final : public AnyAdapter {
public:
    typedef typename Element::Stored Stored;

    explicit Adapter(const AdapterSizes& sizes) : sizes(sizes), products_(size_t(sizes.layers * kAdaptedProducts)) {}

    const AdapterSizes sizes;
    int64_t widest = 0;   // units of the longest row that a `shrink` gives

    const LowRank<Element>& at(int64_t layer, AdaptedProduct product) const {
        return products_[size_t(layer * kAdaptedProducts + int64_t(product))];
    }

    void load(int layer, int product, int64_t rank, const void* shrink, const void* expand) override {
        if (layer < 0 || layer >= sizes.layers || product < 0 || product >= kAdaptedProducts || rank < 1)
            throw Refused{"an adapter of a layer or a product that does not exist"};
        const auto which = AdaptedProduct(product);
        LowRank<Element>& low = products_[size_t(layer * kAdaptedProducts + product)];
        low.rank = rank;
        low.shrink = Matrix<Element>(rank, sizes.inputs(which));
        low.shrink.pack(nullptr, static_cast<const Stored*>(shrink), rank, sizes.inputs(which), 0, 1);
        const auto* from = static_cast<const Stored*>(expand);
        if (which == AdaptedProduct::kGateUp) {
            // Gate and up alternate panel by panel, as in the MLP's own matrix.
            low.expand = Matrix<Element>(2 * padded(sizes.own_inner), rank);
            low.spans.resize(size_t(low.expand.panels));
            place(low, from, sizes.own_inner, 0, 2);
            place(low, from + sizes.own_inner * rank, sizes.own_inner, kPanel, 2);
        } else {
            const int64_t outputs = which == AdaptedProduct::kQkv ? sizes.own_mixed : sizes.own_hidden;
            low.expand = Matrix<Element>(outputs, rank);
            low.spans.resize(size_t(low.expand.panels));
            place(low, from, outputs, 0, 1);
        }
        widest = std::max(widest, low.expand.depth);
    }

private:
    static void place(LowRank<Element>& low, const Stored* from, int64_t rows, int64_t first, int64_t every) {
        low.expand.pack(nullptr, from, rows, low.rank, first, every);
        for (int64_t row = 0; row < rows; ++row) {
            // As `Matrix::pack` places it.
            const int64_t panel = every == 1 ? (first + row) / kPanel : row / kPanel * every + first / kPanel;
            auto& span = low.spans[size_t(panel)];
            for (int64_t i = 0; i < low.rank; ++i) {
                if (Element::widen(from[row * low.rank + i]) == 0.0f) continue;
                const int64_t unit = i / Element::kPerUnit;
                if (span.end == 0) span.begin = unit;
                span = {std::min(span.begin, unit), std::max(span.end, unit + 1)};
            }
        }
    }

    std::vector<LowRank<Element>> products_;
};

}  // namespace pawl
