// Products of a step's rows with a matrix, and with what adapters add to it: members of Decoder.
#pragma once

#include "decoder.h"

namespace pawl {

// Rows of a product that are taken together, so that they stay in the second cache while panels pass by. Processors with
// tile registers have a larger one, and want each panel less often.
constexpr int64_t kRowBlock = PAWL_TILES ? 384 : 192;
// Rows of a product from which on a thread has rows of its own, and walks through all columns: what it made of them
// in the phase before is in its cache, and weights are read by all threads. Tile registers are so fast that reading
// weights is what takes time up to many rows.
constexpr int64_t kOwnRows = PAWL_TILES ? 128 : 16;
// Tasks a thread finds in a product of one row block: enough that a slow core leaves its share to the others.
constexpr int64_t kTasksPerThread = 24;

// The columns of a product, in parts of equal size: one part of one block of rows is a task.
struct Shares {
    Shares(int64_t items, int64_t blocks, int64_t threads) : items(items) {
        const int64_t wanted = std::max<int64_t>(1, threads * kTasksPerThread / std::max<int64_t>(1, blocks));
        size = std::max<int64_t>(1, (items + wanted - 1) / wanted);
        count = (items + size - 1) / size;
    }
    int64_t begin(int64_t share) const { return share * size; }
    int64_t end(int64_t share) const { return std::min(items, (share + 1) * size); }
    int64_t items, size, count;
};

// Where a tile begins, of `rows` in tiles of at most `most`: tiles of nearly equal size, as the last one would else be a
// slow one; but whole tile registers, which take as long for fewer rows.
inline int64_t tile_begin(int64_t rows, int64_t most, int64_t tile) {
    if (PAWL_TILES && most % kBlockTileRows == 0) return std::min(rows, tile * most);
    return rows * tile / ((rows + most - 1) / most);
}

// `count` rows from `first` times columns begin .. end of the matrix, counted in groups of `kPanels` panels.
template <class Element>
template <int kPanels, class Epilogue>
void Decoder<Element>::multiply_block(const Walk& walk, const ElementRows<Element>& from, const Rows& rows, int64_t first,
                                      int64_t count, const Matrix<Element>& weights, int64_t begin, int64_t end,
                                      const Beside* beside, Epilogue&& epilogue) {
    const int64_t most = kMade<Element> || weights.has_elements() ? kTileRows<Element> : kByteRows;
    const int64_t tiles = (count + most - 1) / most;
    // One tile of rows needs no panel that was made as a whole.
    const bool made = kMade<Element> && (tiles > 1 || !PAWL_TILES);
    for (int64_t item = begin; item < end; ++item) {
        const QuantisedPanel* quantised[kPanels];
        const Unit* panels[kPanels];   // null: it is quantised, and nothing is made of it
        for (int i = 0; i < kPanels; ++i) {
            quantised[i] = weights.quantised(item * kPanels + i);
            panels[i] = quantised[i] == nullptr ? weights.panel(item * kPanels + i) : nullptr;
            if (!made || quantised[i] == nullptr) continue;
            Unit* to = made_.row(walk.thread) + i * weights.depth * kPanel;
            make_panel(*quantised[i], weights.inputs, to);
            panels[i] = to;
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
            alignas(64) float out[kPanels][kByteRows * kPanel];
            const int64_t row = first + tile_begin(count, most, tile);
            const int num = int(first + tile_begin(count, most, tile + 1) - row);
            for (int i = 0; i < kPanels; ++i) {
                if (panels[i] == nullptr) {
                    multiply_quantised(from, rows, row, num, *quantised[i], weights.inputs, out[i]);
                } else {
                    const Unit* next = weights.panel(std::min(item + 1, end - 1) * kPanels + i);
                    const Fetch fetch = quantised[i] != nullptr ? Fetch{} : fetch_for(panels[i], next, weights.depth, tile, tiles);
                    multiply_tile<Element>(num, from.row(row), from.stride, panels[i], weights.depth, out[i], nullptr, fetch);
                }
                if (beside != nullptr) expand(*beside, row, num, item * kPanels + i, out[i]);
            }
            epilogue(row, num, item, out);
        }
    }
}

// `num` rows from `row` times one panel.
template <class Element>
void Decoder<Element>::multiply_quantised(const ElementRows<Element>& from, const Rows& rows, int64_t row, int num,
                                          const QuantisedPanel& panel, int64_t inputs, float* out) {
#if PAWL_TILES
    if constexpr (kMade<Element>) return multiply_made(from.row(row), from.stride, num, panel, inputs, out);
#endif
    multiply_bytes(from.bytes(rows, row), from.stride, num, panel, inputs, out);
}

// As many blocks for each thread where all have enough rows, and none larger than it may be.
inline Rows shared_out(int64_t rows, int64_t threads) {
    const int64_t least = std::max<int64_t>(1, (rows + kRowBlock - 1) / kRowBlock);
    return {rows, rounded_up(least, std::max<int64_t>(1, std::min(threads, rows / kOwnRows)))};
}

template <class Element>
template <int kPanels, class Epilogue>
void Decoder<Element>::product(Walk& walk, const ElementRows<Element>& from, const Rows& rows,
                               const Matrix<Element>& weights, const Beside* beside, Epilogue&& epilogue,
                               int64_t start) {
    if (beside != nullptr) shrink(walk, from, rows, *beside);
    const Shares shares(weights.panels / kPanels, rows.blocks, threads());
    walk.phase(rows.blocks * shares.count, [&](int64_t task) {
        const int64_t block = task / shares.count, share = task % shares.count;
        const int64_t first = rows.begin(block), count = rows.begin(block + 1) - first;
        multiply_block<kPanels>(walk, from, rows, start + first, count, weights, shares.begin(share), shares.end(share), beside,
                                epilogue);
    });
}

// The first product of each row's adapter: rows of `from` -> shrunk.
template <class Element>
void Decoder<Element>::shrink(Walk& walk, const ElementRows<Element>& from, const Rows& rows, const Beside& beside) {
    walk.phase(int64_t(beside.rows.runs.size()), [&](int64_t task) {
        const auto& run = beside.rows.runs[size_t(task)];
        const LowRank<Element>& low = run.adapter->at(beside.layer, beside.product);
        if (low.rank == 0) return;
        multiply_block<1>(walk, from, rows, run.first, run.count, low.shrink, 0, low.shrink.panels, nullptr,
                          [&](int64_t row, int num, int64_t panel, auto& out) {
                              for (int i = 0; i < num; ++i)
                                  for (int c = 0; c < kPanel; c += kLanes)
                                      Element::store_narrow(
                                          reinterpret_cast<Stored*>(shrunk_.row(row + i)) + panel * kPanel + c,
                                          load<Floats>(out[0] + i * kPanel + c));
                          });
    });
}

// The second one, added to a tile of the product: `num` rows of one panel. Rows of one adapter share a tile.
template <class Element>
void Decoder<Element>::expand(const Beside& beside, int64_t row, int num, int64_t panel, float* out) const {
    static constexpr float kOnes[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static_assert(kTileRows<Element> <= int(std::size(kOnes)));
    const auto* of = &beside.rows.of[size_t(row)];
    for (int first = 0, end; first < num; first = end) {
        for (end = first + 1; end < std::min(num, first + kTileRows<Element>) && of[end] == of[first];) ++end;
        if (of[first] == nullptr) continue;
        const LowRank<Element>& low = of[first]->at(beside.layer, beside.product);
        if (low.rank == 0) continue;
        const auto span = low.spans[size_t(panel)];
        if (span.begin == span.end) continue;
        multiply_tile<Element, true>(end - first, shrunk_.row(row + first) + span.begin, shrunk_.stride,
                                     low.expand.panel(panel) + span.begin * kPanel, span.end - span.begin,
                                     out + first * kPanel, kOnes, Fetch{});
    }
}

template <class Element>
void Decoder<Element>::add_product(Walk& walk, const ElementRows<Element>& from, const Rows& rows,
                                   const Matrix<Element>& weights, const Beside* beside, const Vector& norm) {
    const bool apart = this->apart();
    product<1>(walk, from, rows, weights, beside, [&](int64_t row, int num, int64_t panel, auto& out) {
        for (int i = 0; i < num; ++i)
            for (int c = 0; c < kPanel; c += kLanes) {
                float* to = (apart ? branch_ : hidden_).row(row + i) + shape_.columns.begin + panel * kPanel + c;
                const Floats value = load<Floats>(out[0] + i * kPanel + c);
                store(to, apart ? value : load<Floats>(to) + value);
            }
    });
    if (!apart) return;
    meet(walk);
    walk.phase(rows.count, [&](int64_t row) {
        if (norm.size == 0) return add(hidden_.row(row), branch_.row(row), shape_.hidden_size);
        add_normalised(hidden_.row(row), branch_.row(row), norm.data(), shape_.hidden_size, shape_.norm_epsilon);
    });
}

}  // namespace pawl
