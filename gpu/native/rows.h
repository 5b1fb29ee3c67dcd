// What happens to one row between two products: norms, gates, rope. Widths are padded to a multiple of 32 with zeros.
#pragma once

#include <cmath>

#include "element.h"

namespace pawl {

inline float sum_of_squares(const float* row, int64_t size) {
    const int64_t whole = size / kParts * kParts;
    Floats parts[kParts / kLanes] = {};
    for (int64_t i = 0; i < whole; i += kParts)
        for (int part = 0; part < kParts / kLanes; ++part) {
            const Floats value = load<Floats>(row + i + part * kLanes);
            parts[part] = multiply_add(value, value, parts[part]);
        }
    float sum = sum_of_parts(parts);
    for (int64_t i = whole; i < size; ++i) sum += row[i] * row[i];
    return sum;
}

inline float norm_scale(const float* row, int64_t size, float epsilon) {
    return 1.0f / std::sqrt(sum_of_squares(row, size) / float(size) + epsilon);
}

// RMSNorm of a row of `size` elements into the element type; weight and both rows are padded.
template <class Element>
void normalise(const float* row, const float* weight, int64_t size, float epsilon, Unit* to) {
    const Floats scale = all(norm_scale(row, size, epsilon));
    auto* out = reinterpret_cast<typename Element::Stored*>(to);
    for (int64_t i = 0; i < padded(size); i += kLanes)
        Element::store_narrow(out + i, load<Floats>(row + i) * scale * load<Floats>(weight + i));
}

// row += branch
inline void add(float* row, const float* branch, int64_t size) {
    for (int64_t i = 0; i < padded(size); i += kLanes) store(row + i, load<Floats>(row + i) + load<Floats>(branch + i));
}

// row += RMSNorm(branch)
inline void add_normalised(float* row, const float* branch, const float* weight, int64_t size, float epsilon) {
    const Floats scale = all(norm_scale(branch, size, epsilon));
    for (int64_t i = 0; i < padded(size); i += kLanes)
        store(row + i, load<Floats>(row + i) + load<Floats>(branch + i) * scale * load<Floats>(weight + i));
}

// RMSNorm of one head in place; heads are not padded.
inline void normalise_head(float* head, const float* weight, int64_t size, float epsilon) {
    const float scale = norm_scale(head, size, epsilon);
    for (int64_t i = 0; i < size; ++i) head[i] = head[i] * scale * weight[i];
}

// Turn one head by its position's angles (cosines [size / 2], then sines) into the element type: i with i + size / 2.
template <class Element>
void turn_head(const float* __restrict head, const float* __restrict angles, int64_t size,
               typename Element::Stored* __restrict to) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float cosine = angles[i], sine = angles[half + i];
        to[i] = Element::narrow(head[i] * cosine - head[half + i] * sine);
        to[half + i] = Element::narrow(head[half + i] * cosine + head[i] * sine);
    }
}

enum class Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// activation(gate) * up
inline Floats gated(Activation activation, Floats gate, Floats up) {
    if (activation == Activation::kSilu) return gate * sigmoid(gate) * up;
    // 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const Floats cubic = multiply_add(gate * gate * gate, all(0.044715f), gate);
    return gate * sigmoid(cubic * 1.5957691216f) * up;
}

}  // namespace pawl
