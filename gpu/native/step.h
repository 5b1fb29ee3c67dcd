// One step of a decoder: the members of Decoder that run it.
#pragma once

#include "products.h"

namespace pawl {

template <class Element>
int Decoder<Element>::num_phases(const Inputs& inputs) const {
    return 16 + int(layers_.size()) * 22 + 3 * int(inputs.num_logits / kRowBlock);
}

template <class Element>
void Decoder<Element>::meet(Walk& walk) {
    if (ranks_ == nullptr) return;
    walk.phase(1, [&](int64_t) { ranks_->arrive(); });
    const uint32_t number = met_ + ++walk.meetings;
    if (walk.thread == 0)
        ranks_->wait_measured(number);
    else
        ranks_->wait(number);
}

// Nobody writes what another may still read of the step before; and all compute the same one.
template <class Element>
void Decoder<Element>::begin_together(Walk& walk) {
    if (ranks_ == nullptr) return;
    meet(walk);
    walk.phase(1, [&](int64_t) { ranks_->compare_steps(); });
}

template <class Element>
void Decoder<Element>::embed(Walk& walk, const Inputs& inputs) {
    const Matrix<Element>& table = shape_.tied_embeddings ? head_ : embedding_;
    const int64_t half = shape_.head_dim / 2;
    walk.phase(inputs.num_tokens, [&](int64_t row) {
        if (inputs.begun != nullptr) {
            float* hidden = hidden_.row(row);
            std::memcpy(hidden, inputs.begun + row * shape_.hidden_size, size_t(shape_.hidden_size) * 4);
            std::fill(hidden + shape_.hidden_size, hidden + hidden_.stride, 0.0f);
        } else if (shape_.vocabulary.has(inputs.tokens[row])) {
            float* hidden = (ranks_ == nullptr ? hidden_ : branch_).row(row);
            table.read_output(inputs.tokens[row] - shape_.vocabulary.begin, shape_.hidden_size, hidden);
            for (int64_t i = 0; i < shape_.hidden_size; ++i) hidden[i] *= shape_.embedding_scale;
            // The row was another request's: what is not a number there would reach this one through the padding.
            std::fill(hidden + shape_.hidden_size, hidden + hidden_.stride, 0.0f);
        }
        for (int64_t rope = 0; rope < shape_.num_ropes; ++rope) {
            float* cosines = angles_.row(row) + rope * shape_.head_dim;
            for (int64_t i = 0; i < half; ++i) {
                const float angle = float(inputs.positions[row]) * inverse_frequencies_[size_t(rope * half + i)];
                cosines[i] = std::cos(angle);
                cosines[half + i] = std::sin(angle);
            }
        }
    });
    if (ranks_ == nullptr || inputs.begun != nullptr) return;
    meet(walk);
    walk.phase(inputs.num_tokens, [&](int64_t row) {
        std::memcpy(hidden_.row(row), branch_.row(row), size_t(hidden_.stride) * 4);
    });
}

// One row of `mixed`: norm and turn the query and key heads; queries for attention, key and value into their page.
template <class Element>
void Decoder<Element>::prepare_heads(const Layer<Element>& layer, const Inputs& inputs, int64_t row) {
    const int64_t size = shape_.head_dim, heads = shape_.heads.count, kv_heads = shape_.kv_heads.count;
    float* mixed = mixed_.row(row);
    const float* angles = angles_.row(row) + layer.rope * size;
    const int64_t position = inputs.positions[row];
    const int64_t slot = inputs.slots[row_segment_[size_t(row)]];
    const int64_t page = table_row(inputs, layer.store, slot)[position / shape_.page_size];
    const int64_t entry = (page * shape_.page_size + position % shape_.page_size) * token_stride();
    Stored* key = layer.keys + entry;
    Stored* value = layer.values + entry;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
        const bool is_query = head < heads;
        const Vector& norm = is_query ? layer.query_norm : layer.key_norm;
        float* from = mixed + head * size;
        if (norm.size > 0) normalise_head(from, norm.data(), size, shape_.norm_epsilon);
        Stored* to = key + (head - heads) * size;
        if (is_query) to = reinterpret_cast<Stored*>(queries(head / group(), row)) + head % group() * size;
        turn_head<Element>(from, angles, size, to);
    }
    const float* values = mixed + (heads + kv_heads) * size;
    for (int64_t i = 0; i < kv_heads * size; ++i) value[i] = Element::narrow(values[i]);
}

// One row: hidden -> normed.
template <class Element>
void Decoder<Element>::normalise_row(const Vector& norm, const Rows& rows, int64_t row) {
    normalise<Element>(hidden_.row(row), norm.data(), shape_.hidden_size, shape_.norm_epsilon, normed_.row(row));
    if (takes_bytes()) normed_.make_bytes(rows, row, 0, padded(shape_.hidden_size));
}

// Norm, qkv, rope, pages, attention: hidden -> attended.
template <class Element>
void Decoder<Element>::attend(Walk& walk, const Inputs& inputs, int64_t index) {
    const Layer<Element>& layer = layers_[size_t(index)];
    walk.phase(rows_.count, [&](int64_t row) { normalise_row(layer.input_norm, rows_, row); });
    const Beside beside{adapted_, index, AdaptedProduct::kQkv};
    product<1>(walk, normed_, rows_, layer.qkv, adapted_.runs.empty() ? nullptr : &beside, [&](int64_t row, int num, int64_t panel, auto& out) {
        for (int i = 0; i < num; ++i)
            for (int c = 0; c < kPanel; c += kLanes) {
                const int64_t column = panel * kPanel + c;
                const Floats value = load<Floats>(out[0] + i * kPanel + c);
                const bool biased = layer.bias.size > 0;
                store(mixed_.row(row + i) + column, biased ? value + load<Floats>(layer.bias.data() + column) : value);
            }
    });
    walk.phase(rows_.count, [&](int64_t row) { prepare_heads(layer, inputs, row); });
    walk.phase(int64_t(segments_.size()), [&](int64_t task) {
        const auto task_of = [&](const Segment& segment) {
            const int64_t head = segment.kv_head * shape_.head_dim;
            Stored* output = reinterpret_cast<Stored*>(attended_.row(segment.first_row)) + first_attended() + head * group();
            return AttentionTask<Element>{
                queries(segment.kv_head, segment.first_row), queries(1, 0) - queries(0, 0), output,
                attended_.stride * Element::kPerUnit, layer.keys + head, layer.values + head,
                segment.pages[layer.store], segment.kv_heads, segment.first_position, segment.positions};
        };
        const int64_t next = std::min<int64_t>(task + 1, int64_t(segments_.size()) - 1);
        const AttentionTask<Element> following = task_of(segments_[size_t(next)]);
        attention_[size_t(walk.thread)].run(task_of(segments_[size_t(task)]), layer.window, next > task ? &following : nullptr);
    });
}

// Past the last attention only the rows matter whose logits are wanted: they move to the front.
template <class Element>
void Decoder<Element>::keep_wanted(Walk& walk, const Inputs& inputs) {
    walk.phase(1, [&](int64_t) {
        for (int64_t i = 0; i < inputs.num_logits; ++i) {
            const int64_t row = inputs.logit_rows[i];
            if (row == i) continue;
            std::memcpy(hidden_.row(i), hidden_.row(row), size_t(hidden_.stride) * 4);
            const auto own = [&](int64_t of) { return reinterpret_cast<Stored*>(attended_.row(of)) + first_attended(); };
            std::memcpy(own(i), own(row), size_t(query_size()) * sizeof(Stored));
        }
    });
}

// Output projection, MLP and both residuals: attended, hidden -> hidden.
template <class Element>
void Decoder<Element>::finish_layer(Walk& walk, int64_t index, const Rows& rows, const AdaptedRows<Element>& adapted) {
    const Layer<Element>& layer = layers_[size_t(index)];
    const Beside output{adapted, index, AdaptedProduct::kOutput}, gate_up{adapted, index, AdaptedProduct::kGateUp},
        down{adapted, index, AdaptedProduct::kDown};
    const bool beside = !adapted.runs.empty();
    meet(walk);
    if (takes_bytes())
        walk.phase(rows.count, [&](int64_t row) { attended_.make_bytes(rows, row, 0, padded(attended_size())); });
    add_product(walk, attended_, rows, layer.output, beside ? &output : nullptr, layer.attention_norm);
    walk.phase(rows.count, [&](int64_t row) { normalise_row(layer.mlp_norm, rows, row); });
    if (layer.routed) return mix_experts(walk, index, rows);
    const Mlp<Element>& mlp = layer.mlps[0];
    product<2>(walk, normed_, rows, mlp.gate_up, beside ? &gate_up : nullptr, [&](int64_t row, int num, int64_t pair, auto& out) {
        store_gated(rows, row, num, shape_.inner.begin / kPanel + pair, out[0], out[1]);
    });
    meet(walk);
    add_product(walk, inner_, rows, mlp.down, beside ? &down : nullptr, layer.after_mlp_norm);
}

// activation(gate) * up of a tile, into the 32 columns of `inner` that panel pair `pair` is for.
template <class Element>
void Decoder<Element>::store_gated(const Rows& rows, int64_t row, int num, int64_t pair, const float* gates,
                                   const float* ups) {
    const Activation activation = shape_.gelu_tanh ? Activation::kGeluTanh : Activation::kSilu;
    for (int i = 0; i < num; ++i) {
        for (int c = 0; c < kPanel; c += kLanes) {
            const int at = i * kPanel + c;
            Stored* to = reinterpret_cast<Stored*>(inner_.row(row + i)) + pair * kPanel + c;
            Element::store_narrow(to, gated(activation, load<Floats>(gates + at), load<Floats>(ups + at)));
        }
        if (takes_bytes()) inner_.make_bytes(rows, row + i, pair * kPanel, kPanel);
    }
}

template <class Element>
void Decoder<Element>::walk(Walk& walk, const Inputs& inputs) {
    begin_together(walk);
    embed(walk, inputs);
    const int64_t last = int64_t(layers_.size()) - 1;
    for (int64_t index = 0; index < last; ++index) {
        attend(walk, inputs, index);
        finish_layer(walk, index, rows_, adapted_);
    }
    attend(walk, inputs, last);
    if (inputs.passed != nullptr) {
        finish_layer(walk, last, rows_, adapted_);
        walk.phase(inputs.num_tokens, [&](int64_t row) {
            std::memcpy(inputs.passed + row * shape_.hidden_size, hidden_.row(row), size_t(shape_.hidden_size) * 4);
        });
        return;
    }
    if (inputs.expert_counts != nullptr) {   // of all rows
        finish_layer(walk, last, rows_, adapted_);
        keep_wanted(walk, inputs);
    } else if (inputs.num_logits > 0) {
        keep_wanted(walk, inputs);
        finish_layer(walk, last, wanted_, adapted_wanted_);
    }
    if (inputs.num_logits == 0) return;
    score(walk, inputs);
}

}  // namespace pawl
