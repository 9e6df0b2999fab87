// Writes past the caches, for results that are too large to stay there: their lines need not be read first.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

// Of a line of the cache, so many elements.
template <class T>
constexpr ptrdiff_t line = 64 / sizeof(T);

// y = x, for a line of the cache.
template <class T>
[[gnu::always_inline]] inline void stream_line(T* y, const T* x) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(y), _mm512_loadu_si512(x));
#elif defined(__AVX__)
    auto from = reinterpret_cast<const __m256i*>(x);
    for (ptrdiff_t i = 0; i < 2; ++i) _mm256_stream_si256(reinterpret_cast<__m256i*>(y) + i, _mm256_loadu_si256(from + i));
#elif defined(__SSE2__)
    auto from = reinterpret_cast<const __m128i*>(x);
    for (ptrdiff_t i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(y) + i, _mm_loadu_si128(from + i));
#else
    std::copy_n(x, line<T>, y);
#endif
}

// Whether y lies just ahead of x, but for multiples of 4096 bytes: then a write is taken for one to what is read next, which
// waits for it, unless one goes from the end to the start. (So lie arrays of NumPy of equal sizes up to 32 MiB.)
inline bool is_just_ahead(const void* y, const void* x) {
    return (reinterpret_cast<uintptr_t>(y) - reinterpret_cast<uintptr_t>(x)) % 4096 < 1024;
}

// Writes rows, one after the other. A line that two rows share is written once.
template <class T>
class Stream {
    static constexpr ptrdiff_t line = ::line<T>;
    T shared[line];
    ptrdiff_t tail = 0;  // so many of its elements are not written yet,
    T* end = nullptr;  // the last ones before this

    void flush() {
        std::copy_n(shared, tail, end - tail);
        tail = 0;
    }

public:
    ~Stream() { flush(); }

    // y[i] = at(i) for i < n, from the start or the end.
    template <class At>
    [[gnu::always_inline]] inline void write(T* y, ptrdiff_t n, bool from_end, At at) {
        ptrdiff_t head = std::min<ptrdiff_t>(n, -(reinterpret_cast<uintptr_t>(y) / sizeof(T)) % line), lines = (n - head) / line;
        if (y != end) flush();
        T* to = tail ? shared + tail : y;
        for (ptrdiff_t i = 0; i < head; ++i) to[i] = at(i);
        if (tail) tail += head;
        if (tail == line) stream_line(y + head - line, shared), tail = 0;
        auto write_line = [=](ptrdiff_t i) __attribute__((always_inline)) {
            T values[line];
#pragma omp simd
            for (ptrdiff_t l = 0; l < line; ++l) values[l] = at(i + l);
            stream_line(y + i, values);
        };
        if (from_end)
            for (ptrdiff_t k = lines - 1; k >= 0; --k) write_line(head + k * line);
        else
            for (ptrdiff_t k = 0; k < lines; ++k) write_line(head + k * line);
        ptrdiff_t rest = head + lines * line;
        for (ptrdiff_t i = rest; i < n; ++i) shared[i - rest] = at(i);
        if (rest < n) tail = n - rest;
        end = y + n;
    }
};

// What was streamed is there for other threads as well. (Those that share a row meet at a barrier, which does as much.)
inline void end_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace
