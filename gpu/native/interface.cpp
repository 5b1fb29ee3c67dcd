// The C interface that the Python side loads. A call that fails returns a message (of this thread, until its next
// call) instead of null; nothing has been computed then.
#include "decoder.h"

#include <exception>

namespace {

thread_local std::string message;

template <class Work>
const char* guarded(Work&& work) {
    try {
        work();
        return nullptr;
    } catch (const pawl::Refused& refused) {
        message = refused.reason;
    } catch (const std::bad_alloc&) {
        message = "out of memory";
    } catch (const std::exception& error) {
        message = error.what();
    }
    return message.c_str();
}

}  // namespace

extern "C" {

// What the kernels were compiled for, in words; a processor that sums as another class does says so (build.py).
#if PAWL_BLOCK_SUMS
#define PAWL_SUMS ", sums in blocks"
#else
#define PAWL_SUMS ""
#endif
const char* pawl_native_target() {
#if PAWL_TILES
    return "avx512 with tiles" PAWL_SUMS;
#elif defined(__AVX512BF16__)
    return "avx512 with bf16 products" PAWL_SUMS;
#elif defined(__AVX512VNNI__)
    return "avx512 with byte products" PAWL_SUMS;
#elif defined(__AVX512F__)
    return "avx512" PAWL_SUMS;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
    return "avx2 with byte products" PAWL_SUMS;
#elif defined(__AVX__) && defined(__FMA__)
    return "avx2" PAWL_SUMS;
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return "neon with bf16 products" PAWL_SUMS;
#elif defined(__ARM_FEATURE_DOTPROD)
    return "neon with byte products" PAWL_SUMS;
#elif defined(__aarch64__)
    return "neon" PAWL_SUMS;
#else
    return "generic" PAWL_SUMS;
#endif
}

const char* pawl_native_create(const pawl::Shape* shape, pawl::AnyDecoder** decoder) {
    return guarded([&] {
        *decoder = (shape->bf16 ? pawl::make_bf16_decoder(*shape) : pawl::make_float32_decoder(*shape)).release();
    });
}

const char* pawl_native_load(pawl::AnyDecoder* decoder, int32_t layer, const char* name, int32_t format,
                             const void* from, int64_t count) {
    return guarded([&] { decoder->load_weight(layer, name, pawl::Format(format), from, count); });
}

const char* pawl_native_read(pawl::AnyDecoder* decoder, int32_t layer, const char* name, int32_t format, void* to,
                             int64_t count) {
    return guarded([&] { decoder->read_weight(layer, name, pawl::Format(format), to, count); });
}

const char* pawl_native_stage(pawl::AnyDecoder* decoder, int32_t layer, const char* name, int32_t format,
                              const void* from, int64_t count) {
    return guarded([&] { decoder->stage_weight(layer, name, pawl::Format(format), from, count); });
}

void pawl_native_drop_staged(pawl::AnyDecoder* decoder) { decoder->drop_staged(); }

const char* pawl_native_switch_experts(pawl::AnyDecoder* decoder, const uint32_t* parts) {
    return guarded([&] { decoder->switch_experts(parts); });
}

const char* pawl_native_forward(pawl::AnyDecoder* decoder, const pawl::Inputs* inputs) {
    return guarded([&] { decoder->forward(*inputs); });
}

void pawl_native_destroy(pawl::AnyDecoder* decoder) { delete decoder; }

const char* pawl_native_join(const char* path, uint64_t life, int32_t rank, int32_t ranks, double timeout_s,
                             pawl::Communicator** joined) {
    return guarded([&] { *joined = new pawl::Communicator(path, life, rank, ranks, timeout_s); });
}

// Why ranks were lost, after which no step can be computed any more; null: they were not.
const char* pawl_native_lost(const pawl::Communicator* joined) {
    return guarded([&] {
        if (joined->lost()) throw pawl::Refused{joined->reason()};
    });
}

// Nanoseconds for which one thread of this rank has waited for others.
int64_t pawl_native_waited(const pawl::Communicator* joined) { return joined->waited_ns(); }

// Meet all others `times` times.
const char* pawl_native_meet(pawl::Communicator* joined, int64_t times) {
    for (int64_t i = 0; i < times; ++i) {
        const uint32_t number = joined->met() + 1;
        joined->arrive();
        joined->wait_measured(number);
    }
    return pawl_native_lost(joined);
}

void pawl_native_leave(pawl::Communicator* joined) { delete joined; }

const char* pawl_native_make_adapter(const pawl::AnyDecoder* decoder, pawl::AnyAdapter** adapter) {
    return guarded([&] { *adapter = decoder->make_adapter().release(); });
}

const char* pawl_native_load_adapter(pawl::AnyAdapter* adapter, int32_t layer, int32_t product, int64_t rank,
                                     const void* shrink, const void* expand) {
    return guarded([&] { adapter->load(layer, product, rank, shrink, expand); });
}

void pawl_native_destroy_adapter(pawl::AnyAdapter* adapter) { delete adapter; }

}  // extern "C"
