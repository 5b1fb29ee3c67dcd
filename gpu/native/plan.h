// Making a decoder, loading its weights, and planning a step: the members of Decoder that run on the caller's thread.
#pragma once

#include "experts.h"
#include "head.h"

namespace pawl {

template <class Element>
Decoder<Element>::Decoder(const Shape& shape)
    : shape_(shape),
      ranks_(shape.ranks),
      pool_(shape.threads),
      stores_{{shape.kv, shape.num_pages}, {shape.window_kv, shape.num_window_pages}},
      layers_(size_t(shape.num_layers)),
      inverse_frequencies_(shape.inverse_frequencies,
                           shape.inverse_frequencies + int64_t(shape.num_ropes) * (shape.head_dim / 2)),
      expert_parts_(shape.expert_parts, shape.expert_parts + int64_t(shape.num_layers) * shape.num_experts),
      head_(shape.vocabulary.count, shape.hidden_size),
      final_norm_(shape.hidden_size),
      hidden_(padded(shape.hidden_size)),
      mixed_(padded(std::max<int64_t>(query_size() + 2 * token_stride(), shape.num_experts))),
      branch_(padded(shape.hidden_size)),
      angles_(int64_t(shape.num_ropes) * shape.head_dim),
      said_(padded(shape.hidden_size)),
      bests_(1),
      scored_(shape.vocab_size),
      queries_(units<Element>(query_size())),
      shrunk_(0),
      normed_(shape.hidden_size),
      attended_(attended_size()),
      inner_(std::max(shape.intermediate_size, shape.expert_size)),
      gathered_(shape.hidden_size),
      made_(2 * kPanel * std::max({normed_.stride, attended_.stride, inner_.stride})) {
    const int64_t hidden = shape.hidden_size, mixed = query_size() + 2 * token_stride(), head = shape.head_dim;
    for (const Part& part : {shape.columns, shape.inner, shape.vocabulary, shape.expert_inner, shape.expert_columns})
        if (part.count > 0 && part.begin % kPanel != 0) throw Refused{"a rank's columns do not begin at a multiple of 32"};
    attended_.share(ranks_, 0), inner_.share(ranks_, 1), branch_.share(ranks_, 2), said_.share(ranks_, 3);
    scored_.share(ranks_, 4), bests_.share(ranks_, 5);
    if (!shape.tied_embeddings) embedding_ = Matrix<Element>(shape.vocabulary.count, hidden);
    for (int64_t index = 0; index < shape.num_layers; ++index) {
        Layer<Element>& layer = layers_[size_t(index)];
        layer.window = shape.windows[index];
        layer.rope = shape.rope_of_layer[index];
        place(layer);
        layer.qkv = Matrix<Element>(mixed, hidden);
        layer.output = Matrix<Element>(shape.columns.count, attended_size());
        layer.routed = shape.num_experts > 0 && shape.expert_layers[index] != 0;
        if (layer.routed) layer.router = Matrix<Element>(shape.num_experts, hidden);
        if (!layer.routed)
            layer.mlps.emplace_back(hidden, shape.inner.count, shape.intermediate_size, shape.columns.count);
        for (int i = 0; layer.routed && i < shape.num_experts; ++i) {
            layer.mlps.emplace_back();
            if (holds(index, i)) layer.mlps.back() = make_expert();
        }
        layer.input_norm = Vector(hidden);
        layer.mlp_norm = Vector(hidden);
        if (shape.qkv_bias) layer.bias = Vector(mixed);
        if (shape.qk_norm) layer.query_norm = Vector(head), layer.key_norm = Vector(head);
        if (shape.sandwich_norms) layer.attention_norm = Vector(hidden), layer.after_mlp_norm = Vector(hidden);
    }
    count_copies();
    for (int thread = 0; thread < shape.threads; ++thread)
        attention_.emplace_back(group(), shape.kv_heads.count, head, shape.page_size, shape.query_scale);
}

// Give the layer the next pages of its store.
template <class Element>
void Decoder<Element>::place(Layer<Element>& layer) {
    layer.store = num_stores() == 2 && layer.window > 0 ? 1 : 0;
    Store& store = stores_[layer.store];
    const int64_t size = store.num_pages * shape_.page_size * token_stride();
    layer.keys = static_cast<Stored*>(store.memory) + 2 * store.num_layers++ * size;
    layer.values = layer.keys + size;
    store.widest_window = std::max(store.widest_window, layer.window > 0 ? layer.window : kUnlimited);
}

template <class Element>
void Decoder<Element>::move_weight(int index, const std::string& name, Format format, const void* from, void* to,
                                   int64_t count, bool staged) {
    const auto require = [&](bool holds) {
        if (!holds) throw Refused{"weight " + name + " does not fit the model: " + std::to_string(count) + " elements"};
    };
    Arena* arena = &panels_;
    const auto matrix = [&](Matrix<Element>& at, int64_t rows, int64_t columns, int64_t first = 0, int64_t every = 1) {
        if (format != Format::kElements) {
            if (to != nullptr) return at.unpack_blocks(format, static_cast<uint8_t*>(to), count, first, every);
            quantised_ = true;
            const auto* blocks = static_cast<const uint8_t*>(from);
            return at.pack_blocks(panels_, format, blocks, count, rows, columns, first, every);
        }
        require(count == rows * columns);
        if (to != nullptr) return at.unpack(static_cast<Stored*>(to), rows, columns, first, every);
        at.pack(arena, static_cast<const Stored*>(from), rows, columns, first, every);
    };
    const auto norm = [&](Vector& at) {
        require(format == Format::kElements && at.size == count);
        float* held = at.memory.template as<float>();
        std::memcpy(to != nullptr ? to : held, to != nullptr ? held : from, size_t(count) * 4);
    };
    const auto bias = [&](Vector& at, int64_t first, int64_t size) {
        require(format == Format::kElements && count == size && at.size >= first + size);
        float* held = at.memory.template as<float>() + first;
        for (int64_t i = 0; i < size; ++i) {
            if (to != nullptr)
                static_cast<Stored*>(to)[i] = Element::narrow(held[i]);
            else
                held[i] = Element::widen(static_cast<const Stored*>(from)[i]);
        }
    };
    const int64_t hidden = shape_.hidden_size, vocab = shape_.vocabulary.count;
    const int64_t query = query_size(), kv = token_stride();
    require(!staged || name.rfind("mlp.experts.", 0) == 0);
    if (name == "lm_head.weight") return matrix(head_, vocab, hidden);
    if (name == "model.embed_tokens.weight")
        return matrix(shape_.tied_embeddings ? head_ : embedding_, vocab, hidden);
    if (name == "model.norm.weight") return norm(final_norm_);
    require(index >= 0 && index < int(layers_.size()));
    Layer<Element>& layer = layers_[size_t(index)];
    if (name == "input_layernorm.weight") return norm(layer.input_norm);
    if (name == "self_attn.q_proj.weight") return matrix(layer.qkv, query, hidden);
    if (name == "self_attn.k_proj.weight") return matrix(layer.qkv, kv, hidden, query);
    if (name == "self_attn.v_proj.weight") return matrix(layer.qkv, kv, hidden, query + kv);
    if (name == "self_attn.q_proj.bias") return bias(layer.bias, 0, query);
    if (name == "self_attn.k_proj.bias") return bias(layer.bias, query, kv);
    if (name == "self_attn.v_proj.bias") return bias(layer.bias, query + kv, kv);
    if (name == "self_attn.q_norm.weight") return norm(layer.query_norm);
    if (name == "self_attn.k_norm.weight") return norm(layer.key_norm);
    if (name == "self_attn.o_proj.weight") return matrix(layer.output, shape_.columns.count, attended_size());
    if (layer.routed && name == "mlp.gate.weight") return matrix(layer.router, shape_.num_experts, hidden);
    if (name.rfind("mlp.", 0) == 0) {
        // "mlp.up_proj.weight", or "mlp.experts.7.up_proj.weight"
        const std::string experts = "mlp.experts.";
        const bool named = name.rfind(experts, 0) == 0;
        const size_t dot = named ? name.find('.', experts.size()) : 3;
        const int64_t expert = named ? std::atoll(name.c_str() + experts.size()) : 0;
        require(named == layer.routed && dot != std::string::npos && expert >= 0 && expert < int64_t(layer.mlps.size()));
        const std::string part = name.substr(dot + 1);
        require(!layer.routed || staged || holds(index, expert));
        if (layer.routed) arena = nullptr;   // an expert goes when it is elsewhere
        const int64_t whole = layer.routed ? shape_.expert_size : shape_.intermediate_size;
        const int64_t inner = (layer.routed ? shape_.expert_inner : shape_.inner).count;
        const int64_t columns = (layer.routed ? shape_.expert_columns : shape_.columns).count;
        if (staged) staged_.try_emplace({index, expert}, make_expert());
        Mlp<Element>& mlp = staged ? staged_.at({index, expert}) : layer.mlps[size_t(expert)];
        // Gate and up alternate panel by panel, so that one task has both.
        if (part == "gate_proj.weight") return matrix(mlp.gate_up, inner, hidden, 0, 2);
        if (part == "up_proj.weight") return matrix(mlp.gate_up, inner, hidden, kPanel, 2);
        if (part == "down_proj.weight") return matrix(mlp.down, columns, whole);
    }
    if (name == "post_attention_layernorm.weight")
        return norm(shape_.sandwich_norms ? layer.attention_norm : layer.mlp_norm);
    if (name == "pre_feedforward_layernorm.weight") return norm(layer.mlp_norm);
    if (name == "post_feedforward_layernorm.weight") return norm(layer.after_mlp_norm);
    require(false);
}

template <class Element>
void Decoder<Element>::switch_experts(const uint32_t* parts) {
    const auto each = [&](auto&& work) {
        for (int64_t index = 0; index < shape_.num_layers; ++index)
            for (int64_t expert = 0; layers_[size_t(index)].routed && expert < shape_.num_experts; ++expert)
                work(index, expert, is_own(parts[index * shape_.num_experts + expert]));
    };
    each([&](int64_t index, int64_t expert, bool own) {
        if (own && !holds(index, expert) && staged_.count({index, expert}) == 0)
            throw Refused{"expert " + std::to_string(expert) + " of layer " + std::to_string(index) + " is not staged"};
    });
    each([&](int64_t index, int64_t expert, bool own) {
        Mlp<Element>& mlp = layers_[size_t(index)].mlps[size_t(expert)];
        if (own && !holds(index, expert)) mlp = std::move(staged_.at({index, expert}));
        if (!own) mlp = Mlp<Element>();
    });
    std::copy(parts, parts + expert_parts_.size(), expert_parts_.begin());
    staged_.clear();
    count_copies();
}

template <class Element>
void Decoder<Element>::check_segment(const Inputs& inputs, int64_t segment) const {
    const auto require = [&](bool holds, const char* what) {
        if (!holds) throw Refused{"segment " + std::to_string(segment) + ": " + what};
    };
    const int64_t first = inputs.offsets[segment], last = inputs.offsets[segment + 1];
    const int64_t slot = inputs.slots[segment], start = inputs.starts[segment];
    require(last - first == inputs.lengths[segment] && last > first, "its rows are not its length");
    require(last <= inputs.num_tokens && first >= 0, "its rows are not in the batch");
    require(slot >= 0 && slot < inputs.num_slots, "no such slot");
    const int64_t end = start + inputs.lengths[segment];
    require(start >= 0 && end <= int64_t(inputs.pages_per_slot) * shape_.page_size, "beyond the slot's pages");
    for (int store = 0; store < num_stores(); ++store) {
        const int32_t* pages = table_row(inputs, store, slot);
        // Only pages that some layer reads must be valid: with a window everywhere, older ones may be gone.
        const int64_t oldest = std::max(start + 1 - stores_[store].widest_window, int64_t(0));
        for (int64_t page = oldest / shape_.page_size; page * shape_.page_size < end; ++page)
            require(pages[page] >= 0 && pages[page] < stores_[store].num_pages,
                    store == 0 ? "a page that does not exist" : "a window page that does not exist");
    }
    for (int64_t row = first; row < last; ++row) {
        require(inputs.positions[row] == start + row - first, "positions are not consecutive");
        require(inputs.tokens[row] >= 0 && inputs.tokens[row] < shape_.vocab_size, "a token outside the vocabulary");
    }
}

// Everything that indexes memory is checked before the step: a wrong page would be somebody else's.
template <class Element>
void Decoder<Element>::check(const Inputs& inputs) const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw Refused{what};
    };
    require((inputs.window_table != nullptr) == (num_stores() == 2), "a window table and a window store go together");
    require(inputs.num_segments > 0 && inputs.offsets[0] == 0, "there are no segments");
    require(inputs.offsets[inputs.num_segments] == inputs.num_tokens, "segments do not cover the batch");
    for (int64_t segment = 0; segment < inputs.num_segments; ++segment) {
        check_segment(inputs, segment);
        if (inputs.adapters == nullptr || inputs.adapters[segment] == nullptr) continue;
        const auto* adapter = dynamic_cast<const Adapter<Element>*>(inputs.adapters[segment]);
        require(adapter != nullptr && adapter->sizes == sizes(), "an adapter that was made for another model");
    }
    for (int64_t i = 0; i < inputs.num_logits; ++i) {
        const int64_t previous = i == 0 ? -1 : inputs.logit_rows[i - 1];
        require(inputs.logit_rows[i] > previous && inputs.logit_rows[i] < inputs.num_tokens,
                "logit rows do not rise within the batch");
    }
}

template <class Element>
AdapterSizes Decoder<Element>::sizes() const {
    return {int64_t(layers_.size()),           shape_.hidden_size,   attended_size(), shape_.intermediate_size,
            query_size() + 2 * token_stride(), shape_.columns.count, shape_.inner.count};
}

// Rows that a task of an adapter's first product takes together.
constexpr int64_t kRunRows = 64;

template <class Element>
void Decoder<Element>::find_runs(AdaptedRows<Element>& rows) const {
    rows.runs.clear();
    for (int64_t row = 0; row < int64_t(rows.of.size()); ++row) {
        const auto* adapter = rows.of[size_t(row)];
        if (adapter == nullptr) continue;
        const bool follows = row > 0 && rows.of[size_t(row - 1)] == adapter && rows.runs.back().count < kRunRows;
        if (follows)
            ++rows.runs.back().count;
        else
            rows.runs.push_back({row, 1, adapter});
    }
}

template <class Element>
void Decoder<Element>::plan_adapters(const Inputs& inputs) {
    adapted_.of.clear(), adapted_wanted_.of.clear();
    if (inputs.adapters != nullptr) {
        for (int32_t segment : row_segment_) {
            adapted_.of.push_back(static_cast<const Adapter<Element>*>(inputs.adapters[segment]));
            if (adapted_.of.back() != nullptr) shrunk_.widen(adapted_.of.back()->widest);
        }
        for (int64_t i = 0; i < inputs.num_logits; ++i)
            adapted_wanted_.of.push_back(adapted_.of[size_t(inputs.logit_rows[i])]);
        shrunk_.reserve(inputs.num_tokens);
    }
    find_runs(adapted_), find_runs(adapted_wanted_);
}

template <class Element>
void Decoder<Element>::plan(const Inputs& inputs) {
    const int64_t rows = inputs.num_tokens;
    for (RowBuffer<float>* buffer : {&hidden_, &mixed_, &angles_}) buffer->reserve(rows);
    if (apart()) branch_.reserve(rows);
    queries_.reserve(rows);
    if (quantised_ && kMade<Element>) made_.reserve(threads());
    rows_ = shared_out(rows, threads()), wanted_ = shared_out(inputs.num_logits, threads());
    for (ElementRows<Element>* buffer : {&normed_, &attended_, &inner_}) buffer->reserve(rows_);
    if (shape_.num_experts > 0) {
        said_.reserve(pairs(rows));
        for (ElementRows<Element>* buffer : {&gathered_, &inner_}) buffer->reserve(Rows{pairs(rows), 1});
        choices_.resize(size_t(pairs(rows)));
    }
    if (ranks_ != nullptr) {
        if (inputs.logits != nullptr) scored_.reserve(std::min<int64_t>(2 * kRowBlock, inputs.num_logits));
        if (inputs.greedy != nullptr) bests_.reserve(ranks_->ranks * int64_t(inputs.num_logits));
    }
    segments_.clear();
    row_segment_.resize(size_t(rows));
    const int64_t most = attention_[0].capacity();
    // Where there are enough segments, a decoding row takes all key heads of a page at once: they lie together.
    const bool whole_rows = inputs.num_segments >= 4 * threads();
    for (int64_t segment = 0; segment < inputs.num_segments; ++segment) {
        const int64_t first = inputs.offsets[segment], length = inputs.lengths[segment];
        std::fill_n(row_segment_.begin() + first, length, int32_t(segment));
        const int64_t slot = inputs.slots[segment];
        const int64_t heads = length == 1 && whole_rows ? shape_.kv_heads.count : 1;
        for (int64_t done = 0; done < length; done += most)
            for (int64_t head = 0; head < shape_.kv_heads.count; head += heads)
                segments_.push_back(Segment{first + done, inputs.starts[segment] + done, std::min(most, length - done),
                                            {table_row(inputs, 0, slot), table_row(inputs, 1, slot)}, head, heads});
    }
    // Those of a thread's rows together, the longest first, so that the end of the phase is fine-grained.
    const Rows parts{rows, threads()};
    std::stable_sort(segments_.begin(), segments_.end(), [&](const Segment& a, const Segment& b) {
        const int64_t owner = parts.block_of(a.first_row), other = parts.block_of(b.first_row);
        if (owner != other) return owner < other;
        return a.first_position + a.positions > b.first_position + b.positions;
    });
    plan_adapters(inputs);
    best_.assign(inputs.greedy == nullptr ? 0 : size_t(threads() * inputs.num_logits),
                 Best{-std::numeric_limits<float>::infinity(), 0});
}

// What ranks of one step agree on, in one number (FNV-1a over words).
inline uint64_t digest_of(const Inputs& inputs, const std::vector<uint32_t>& expert_parts) {
    uint64_t digest = 14695981039346656037u;
    const auto add = [&](const int32_t* values, int64_t count) {
        for (int64_t i = 0; i < count; ++i) digest = (digest ^ uint32_t(values[i])) * 1099511628211u;
    };
    const int32_t sizes[] = {inputs.num_tokens,
                             inputs.num_segments,
                             inputs.num_logits,
                             (inputs.logits != nullptr) + 2 * (inputs.greedy != nullptr),
                             inputs.expert_counts != nullptr};
    add(sizes, 5), add(inputs.tokens, inputs.num_tokens), add(inputs.positions, inputs.num_tokens);
    add(inputs.slots, inputs.num_segments), add(inputs.offsets, inputs.num_segments + 1);
    add(inputs.logit_rows, inputs.num_logits);
    for (uint32_t parts : expert_parts) digest = (digest ^ parts) * 1099511628211u;
    return digest;
}

template <class Element>
void Decoder<Element>::forward(const Inputs& inputs) {
    if (lost()) throw Refused{ranks_->reason()};
    check(inputs);
    try {
        plan(inputs);
    } catch (const std::bad_alloc&) {
        if (ranks_ != nullptr) ranks_->give_up(ranks_->rank, "no memory for a step of this size");
        throw;
    }
    expert_counts_ = inputs.expert_counts;
    if (ranks_ != nullptr) {
        met_ = ranks_->met();
        ranks_->say_step(digest_of(inputs, expert_parts_));
    }
    pool_.run(num_phases(inputs), [&](Walk& walk) {
        const TileRegisters registers;
        this->walk(walk, inputs);
    });
    if (lost()) throw Refused{ranks_->reason()};
}

}  // namespace pawl
