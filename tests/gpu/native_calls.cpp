// Makes again the calls that tests/gpu/native_calls.py wrote down, and writes what they give to standard output: the
// compiled kernels on a processor for which there is no Python.
#include <cstdio>
#include <cstdlib>
#include <list>
#include <vector>

#include "decoder.h"

extern "C" {
const char* pawl_native_create(const pawl::Shape* shape, pawl::AnyDecoder** decoder);
const char* pawl_native_load(pawl::AnyDecoder* decoder, int32_t layer, const char* name, int32_t format,
                             const void* from, int64_t count);
const char* pawl_native_forward(pawl::AnyDecoder* decoder, const pawl::Inputs* inputs);
void pawl_native_destroy(pawl::AnyDecoder* decoder);
}

namespace {

typedef std::vector<char> Bytes;

void check(const char* message) {
    if (message == nullptr) return;
    std::fprintf(stderr, "%s\n", message);
    std::exit(1);
}

class Calls {
public:
    explicit Calls(const char* path) : file_(std::fopen(path, "rb")) { check(file_ == nullptr ? "no such file" : nullptr); }

    bool at_end() {
        const int next = std::fgetc(file_);
        return next == EOF || std::ungetc(next, file_) == EOF;
    }

    int64_t number() {
        int64_t value;
        read(&value, sizeof(value));
        return value;
    }

    Bytes bytes() {
        Bytes found;
        found.resize(size_t(number()));
        read(found.data(), found.size());
        return found;
    }

    // A structure, then the arrays that its pointers point to: where the pointer is, whether it is an output, contents.
    template <class Structure>
    Structure structure(std::list<Bytes>& arrays, std::vector<const Bytes*>& outputs) {
        Structure found;
        check(number() != sizeof(found) ? "structures of other sizes" : nullptr);
        read(&found, sizeof(found));
        for (int64_t count = number(); count > 0; --count) {
            const int64_t at = number();
            const bool is_output = number() != 0;
            arrays.push_back(bytes());
            const void* data = arrays.back().data();
            std::memcpy(reinterpret_cast<char*>(&found) + at, &data, sizeof(data));
            if (is_output) outputs.push_back(&arrays.back());
        }
        return found;
    }

private:
    void read(void* to, size_t size) { check(std::fread(to, 1, size, file_) != size ? "the file ends too soon" : nullptr); }

    std::FILE* file_;
};

void write(const std::vector<const Bytes*>& outputs) {
    for (const Bytes* bytes : outputs) std::fwrite(bytes->data(), 1, bytes->size(), stdout);
}

}  // namespace

int main(int, char** arguments) {
    Calls calls(arguments[1]);
    std::list<Bytes> lasting;
    std::vector<const Bytes*> pages;
    const auto shape = calls.structure<pawl::Shape>(lasting, pages);
    pawl::AnyDecoder* decoder = nullptr;
    check(pawl_native_create(&shape, &decoder));
    for (int64_t weights = calls.number(); weights > 0; --weights) {
        const auto layer = int32_t(calls.number()), format = int32_t(calls.number());
        const int64_t count = calls.number();
        const Bytes name = calls.bytes(), data = calls.bytes();
        check(pawl_native_load(decoder, layer, name.data(), format, data.data(), count));
    }
    while (!calls.at_end()) {
        std::list<Bytes> arrays;
        std::vector<const Bytes*> outputs;
        const auto inputs = calls.structure<pawl::Inputs>(arrays, outputs);
        check(pawl_native_forward(decoder, &inputs));
        write(outputs);
    }
    write(pages);
    pawl_native_destroy(decoder);
}
