// A decoder of one element type: its weights, and one step over a flat batch of segments.
//
//     hidden    [t][hidden]         float32, the residual stream
//     normed    [t][hidden]         elements, input of a product
//     mixed     [t][q + k + v]      float32, output of the qkv product
//     queries   [kv head][t][group][head_dim]   elements, after rope: rows of one attention task are neighbours
//     attended  [t][q]              elements
//     inner     [t][intermediate]   elements, activation(gate) * up
//     branch    [t][hidden]         float32, an output that is normed before it joins the stream
//     shrunk    [t][rank]           elements, input of an adapter's second product
//
// In a layer of experts, where p counts pairs of a row and one of its experts, those of one expert side by side:
//
//     mixed     [t][experts]        float32, the router's scores
//     gathered  [p][hidden]         elements, the rows
//     inner     [p][expert size]    elements
//     said      [p][hidden]         float32, what the experts add, before it is weighted
//
// Rows are padded to a multiple of 32 elements; the padding stays zero from end to end.
//
// With ranks (`communicator.h`) a decoder has some heads, some columns of every other product, some of the vocabulary.
// Rows of `attended`, `inner`, `branch` and `said` are then whole, each column written by the rank that has it, in memory
// that all share; the other buffers are a rank's own, and `mixed` and `queries` have its heads only. Every product sums
// over all of its depth where its output is, so that no sum depends on how many ranks there are.
#pragma once

#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapter.h"
#include "attention.h"
#include "communicator.h"
#include "made.h"
#include "matrix.h"
#include "pool.h"
#include "row_buffers.h"
#include "rows.h"

namespace pawl {

// Those that a rank has of some heads, columns or outputs; all of them where there is one rank.
struct Part {
    int32_t begin, count;
    bool has(int64_t index) const { return index >= begin && index < begin + count; }
};

// As in the Python side's `_Shape`; every field is 4 or 8 bytes wide and naturally aligned.
struct Shape {
    int32_t bf16, vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size;
    int32_t gelu_tanh, qkv_bias, qk_norm, sandwich_norms, tied_embeddings, num_ropes, num_pages, page_size;
    int32_t num_experts, experts_per_row, expert_size, normalised_shares;   // 0 experts: none in any layer
    float norm_epsilon, embedding_scale, query_scale;
    int32_t threads, num_window_pages;   // 0 window pages: one store for all layers
    void* kv;                         // [layers][2][pages][page_size][kv_heads][head_dim]
    void* window_kv;                  // the same of the layers with a window, where those have a store of their own
    const int32_t* windows;           // [layers], 0: none
    const int32_t* rope_of_layer;     // [layers]
    const int32_t* expert_layers;     // [layers], 1: has experts
    const float* inverse_frequencies; // [num_ropes][head_dim / 2]
    // Parts begin at multiples of 32, but those of heads.
    Part heads, kv_heads;             // whole groups
    Part columns;                     // of hidden: outputs of the output projection and of an MLP
    Part inner, vocabulary;
    Part expert_inner, expert_columns;
    const uint32_t* expert_parts;     // [layers][experts]: a bit for each part of the ranks that has it
    int64_t part;                     // to which this rank belongs
    Communicator* ranks;              // null: there is one rank; outlives the decoder
};

struct Inputs {
    int32_t num_tokens, num_segments, num_logits, num_slots, pages_per_slot;
    int32_t reserved;
    const int32_t *tokens, *positions, *slots, *starts, *lengths, *offsets, *page_table, *logit_rows;
    const int32_t* window_table;   // as page_table, for the layers of the second store; null where there is none
    float* logits;     // [num_logits][vocab], or null
    int32_t* greedy;   // [num_logits], or null; kNoToken where a logit is not a finite number
    const uint32_t* masks;   // [num_logits][ceil(vocab / 32)], or null: greedy chooses tokens whose bits are set
    float* hidden;     // [num_logits][hidden], or null: the rows after the final norm, in place of logits and greedy
    const AnyAdapter* const* adapters;   // [num_segments], null for a segment without one; or null: none has one
    int64_t* expert_counts;   // [layers][experts], or null: (row, expert) pairs of all rows are added
    const float* begun;   // [num_tokens][hidden], or null: what the stage before has computed, in place of the embedding
    float* passed;        // [num_tokens][hidden], or null: what the next stage goes on with, in place of all scores
};

constexpr int32_t kNoToken = -1;

class AnyDecoder {
public:
    virtual ~AnyDecoder() = default;
    // Copy one weight (named as in a checkpoint) of `count` elements: norms are float32, the rest elements; or of
    // `count` bytes of blocks of a quantised format.
    virtual void load_weight(int layer, const std::string& name, Format format, const void* from, int64_t count) = 0;
    // The inverse: what was loaded, to the bit.
    virtual void read_weight(int layer, const std::string& name, Format format, void* to, int64_t count) = 0;
    virtual void forward(const Inputs& inputs) = 0;
    // As `load_weight`, of an expert that this rank has once `switch_experts` says so. Beside steps, not beside a switch.
    virtual void stage_weight(int layer, const std::string& name, Format format, const void* from, int64_t count) = 0;
    virtual void drop_staged() = 0;
    // Experts are where `parts` says from now on (see `Shape`): those that are staged are taken, those that are
    // elsewhere freed. Throws Refused, with nothing changed, where one is neither here nor staged. Between steps.
    virtual void switch_experts(const uint32_t* parts) = 0;
    // An adapter that changes nothing yet, for every decoder of this shape.
    virtual std::unique_ptr<AnyAdapter> make_adapter() const = 0;
    virtual int threads() const = 0;
};

std::unique_ptr<AnyDecoder> make_bf16_decoder(const Shape& shape);
std::unique_ptr<AnyDecoder> make_float32_decoder(const Shape& shape);

struct Vector {
    Vector() = default;
    explicit Vector(int64_t size) : size(size), memory(padded(size) * 4) {}
    int64_t size = 0;
    Memory memory;
    const float* data() const { return memory.as<float>(); }
};

// The pages of some layers: of all, or of those without a window, or of those with one.
struct Store {
    void* memory;
    int64_t num_pages, num_layers = 0;
    int64_t widest_window = 0;   // over its layers; kUnlimited: some layer sees everything
};
constexpr int64_t kUnlimited = int64_t(1) << 40;
constexpr int kStores = 2;

template <class Element>
struct Mlp {
    Mlp() = default;
    // `inner` of its `whole` inner columns, `columns` of its outputs.
    Mlp(int64_t hidden, int64_t inner, int64_t whole, int64_t columns)
        : gate_up(2 * padded(inner), hidden), down(columns, whole) {}
    Matrix<Element> gate_up, down;
};

template <class Element>
struct Layer {
    Matrix<Element> qkv, output, router;
    std::vector<Mlp<Element>> mlps;   // one, or one for each expert
    bool routed = false;
    Vector input_norm, mlp_norm, attention_norm, after_mlp_norm, query_norm, key_norm, bias;
    int64_t window = 0;
    int rope = 0;
    int store = 0;
    typename Element::Stored *keys = nullptr, *values = nullptr;   // page 0
};

// Which adapter each of some rows goes through.
template <class Element>
struct AdaptedRows {
    struct Run {
        int64_t first, count;
        const Adapter<Element>* adapter;
    };
    std::vector<const Adapter<Element>*> of;   // null: none; empty: none of the rows has one
    std::vector<Run> runs;                     // neighbours that have the same one
};

template <class Element>
class Decoder final : public AnyDecoder {
public:
    typedef typename Element::Stored Stored;

    explicit Decoder(const Shape& shape);
    void load_weight(int layer, const std::string& name, Format format, const void* from, int64_t count) override {
        move_weight(layer, name, format, from, nullptr, count);
    }
    void stage_weight(int layer, const std::string& name, Format format, const void* from, int64_t count) override {
        move_weight(layer, name, format, from, nullptr, count, true);
    }
    void drop_staged() override { staged_.clear(); }
    void switch_experts(const uint32_t* parts) override;
    void read_weight(int layer, const std::string& name, Format format, void* to, int64_t count) override {
        move_weight(layer, name, format, nullptr, to, count);
    }
    void forward(const Inputs& inputs) override;
    std::unique_ptr<AnyAdapter> make_adapter() const override { return std::make_unique<Adapter<Element>>(sizes()); }
    int threads() const override { return pool_.threads(); }

private:
    // What a step's adapters add to one product.
    struct Beside {
        const AdaptedRows<Element>& rows;
        int64_t layer;
        AdaptedProduct product;
    };
    struct Segment {
        int64_t first_row, first_position, positions;
        const int32_t* pages[kStores];   // the slot's page table rows
        int64_t kv_head, kv_heads;
    };
    struct Best {
        float logit;
        int32_t token;
    };
    // One expert of one row.
    struct Choice {
        int32_t expert;
        float share;
        int64_t pair;
    };
    // Pairs of one expert that a task takes together.
    struct Block {
        int64_t first, count;
        int32_t expert;
    };
    // The larger logit; of equals, the lower token: the same choice in whatever order candidates come.
    static Best better(Best a, Best b) {
        if (a.logit != b.logit) return a.logit < b.logit ? b : a;
        return a.token < b.token ? a : b;
    }

    // plan.h: planning, on the calling thread.
    void check(const Inputs& inputs) const;
    void check_segment(const Inputs& inputs, int64_t segment) const;
    void plan(const Inputs& inputs);
    void plan_adapters(const Inputs& inputs);
    void find_runs(AdaptedRows<Element>& rows) const;
    AdapterSizes sizes() const;
    int num_phases(const Inputs& inputs) const;

    // step.h: run by every thread of the pool.
    void walk(Walk& walk, const Inputs& inputs);
    void embed(Walk& walk, const Inputs& inputs);
    void attend(Walk& walk, const Inputs& inputs, int64_t index);
    void keep_wanted(Walk& walk, const Inputs& inputs);
    void finish_layer(Walk& walk, int64_t index, const Rows& rows, const AdaptedRows<Element>& adapted);
    void score(Walk& walk, const Inputs& inputs);   // head.h
    void score_block(Walk& walk, const Inputs& inputs, int64_t first, const Rows& rows, float* logits);
    void choose(Walk& walk, const Inputs& inputs);
    // All ranks have come here: what they wrote before may be read. Nothing where there is one.
    void meet(Walk& walk);
    void begin_together(Walk& walk);
    void prepare_heads(const Layer<Element>& layer, const Inputs& inputs, int64_t row);
    void normalise_row(const Vector& norm, const Rows& rows, int64_t row);
    void store_gated(const Rows& rows, int64_t row, int num, int64_t pair, const float* gates, const float* ups);

    // products.h: run by every thread of the pool.
    template <int kPanels, class Epilogue>
    void product(Walk& walk, const ElementRows<Element>& from, const Rows& rows, const Matrix<Element>& weights,
                 const Beside* beside, Epilogue&& epilogue, int64_t start = 0);
    template <int kPanels, class Epilogue>
    void multiply_block(const Walk& walk, const ElementRows<Element>& from, const Rows& rows, int64_t first, int64_t count,
                        const Matrix<Element>& weights, int64_t begin, int64_t end, const Beside* beside,
                        Epilogue&& epilogue);
    static void multiply_quantised(const ElementRows<Element>& from, const Rows& rows, int64_t row, int num,
                                   const QuantisedPanel& panel, int64_t inputs, float* out);
    void shrink(Walk& walk, const ElementRows<Element>& from, const Rows& rows, const Beside& beside);
    void expand(const Beside& beside, int64_t row, int num, int64_t panel, float* out) const;
    void add_product(Walk& walk, const ElementRows<Element>& from, const Rows& rows, const Matrix<Element>& weights,
                     const Beside* beside, const Vector& norm);

    // experts.h: run by every thread of the pool.
    void mix_experts(Walk& walk, int64_t index, const Rows& rows);
    void choose_experts(int64_t row);
    void group_by_expert(int64_t index, int64_t rows, int64_t* counts);
    template <int kPanels, class Pick, class Epilogue>
    void expert_product(Walk& walk, const ElementRows<Element>& from, const Rows& pairs, const Layer<Element>& layer,
                        int64_t panels, Pick&& pick, Epilogue&& epilogue);
    int64_t pairs(int64_t rows) const { return rows * shape_.experts_per_row; }
    uint32_t parts_of(int64_t layer, int64_t expert) const {
        return expert_parts_[size_t(layer * shape_.num_experts + expert)];
    }
    static int64_t num_parts(uint32_t parts) {
        int64_t found = 0;
        for (; parts != 0; parts &= parts - 1) ++found;
        return found;
    }
    void count_copies();
    bool is_own(uint32_t parts) const { return (parts >> shape_.part & 1) != 0; }
    bool holds(int64_t layer, int64_t expert) const { return is_own(parts_of(layer, expert)); }
    Mlp<Element> make_expert() const {
        return {shape_.hidden_size, shape_.expert_inner.count, shape_.expert_size, shape_.expert_columns.count};
    }
    void add_blocks(int64_t index, int32_t expert, int64_t first, int64_t end);

    void place(Layer<Element>& layer);
    // Copy a weight to its place, or from there: of `from` and `to` one is null.
    void move_weight(int layer, const std::string& name, Format format, const void* from, void* to, int64_t count,
                     bool staged = false);
    int num_stores() const { return shape_.num_window_pages > 0 ? 2 : 1; }
    static const int32_t* table_row(const Inputs& inputs, int store, int64_t slot) {
        const int32_t* table = store == 0 ? inputs.page_table : inputs.window_table;
        return table == nullptr ? nullptr : table + slot * inputs.pages_per_slot;
    }
    // Elements of this rank's key heads, of its query heads, and of those of all ranks.
    int64_t token_stride() const { return int64_t(shape_.kv_heads.count) * shape_.head_dim; }
    int64_t query_size() const { return int64_t(shape_.heads.count) * shape_.head_dim; }
    int64_t attended_size() const { return int64_t(shape_.num_heads) * shape_.head_dim; }
    int64_t first_attended() const { return int64_t(shape_.heads.begin) * shape_.head_dim; }
    bool lost() const { return ranks_ != nullptr && ranks_->lost(); }
    // Whether what a product adds to the stream stands in `branch` first.
    bool apart() const { return ranks_ != nullptr || shape_.sandwich_norms; }
    // Whether rows of elements are bytes too, for quantised weights.
    bool takes_bytes() const { return quantised_ && !kMade<Element>; }
    int64_t group() const { return shape_.heads.count / shape_.kv_heads.count; }
    Unit* queries(int64_t kv_head, int64_t row) const {
        return queries_.row(0) + (kv_head * rows_.count + row) * group() * units<Element>(shape_.head_dim);
    }

    Shape shape_;
    Communicator* const ranks_;   // null: there is one rank
    uint32_t met_ = 0;            // meetings before this step
    Pool pool_;
    Store stores_[kStores];
    std::vector<Layer<Element>> layers_;
    std::vector<float> inverse_frequencies_;
    std::vector<uint32_t> expert_parts_;          // [layers][experts], as in `Shape`
    int64_t most_copies_ = 0;   // of experts of one layer, beside the first of each
    std::map<std::pair<int64_t, int64_t>, Mlp<Element>> staged_;   // (layer, expert)
    bool quantised_ = false;   // whether some matrix is
    Arena panels_;             // of all matrices but those that are freed by themselves
    Matrix<Element> embedding_, head_;
    Vector final_norm_;
    std::vector<Attention<Element>> attention_;   // one for each thread
    std::vector<Best> best_;                      // [thread][logit row]
    std::vector<Segment> segments_;               // attention tasks of this step
    std::vector<int32_t> row_segment_;            // [t]
    int64_t* expert_counts_ = nullptr;            // of this step, or null
    std::vector<Choice> choices_;                 // [t][experts of a row]
    std::vector<Block> blocks_;                   // of this layer's pairs, those of this rank's part
    std::vector<int64_t> part_rows_;              // that each part has of them so far
    RowBuffer<float> hidden_, mixed_, branch_, angles_, said_;
    RowBuffer<Best> bests_;      // [rank][logit row], where there are ranks
    RowBuffer<float> scored_;    // [logit rows of two blocks][vocab], the same
    AdaptedRows<Element> adapted_, adapted_wanted_;   // of all rows, and of those whose logits are wanted
    RowBuffer<Unit> queries_, shrunk_;
    ElementRows<Element> normed_, attended_, inner_, gathered_;
    RowBuffer<Unit> made_;   // [thread][2 panels of as many inputs as rows are long], what is made of quantised ones
    Rows rows_{0, 1}, wanted_{0, 1};   // of this step: all, and those whose logits are wanted
};

}  // namespace pawl
