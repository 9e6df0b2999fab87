// How threads share one long row: by chunks, whose sums are added in order, whoever computes them.
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace {

// A sum of more elements is the sum of the sums of these, on any number of threads.
constexpr ptrdiff_t chunk = 16384;

// work(i) for each i < n.
template <class Work>
void each(ptrdiff_t n, int threads, Work work) {
    if (threads <= 1) {
        for (ptrdiff_t i = 0; i < n; ++i) work(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
    for (ptrdiff_t i = 0; i < n; ++i) work(i);
}

// work(from, length) for each chunk of n elements.
template <class Work>
void each_chunk(ptrdiff_t n, int threads, Work work) {
    if (threads <= 1) {
        for (ptrdiff_t from = 0; from < n; from += chunk) work(from, std::min(chunk, n - from));
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (ptrdiff_t from = 0; from < n; from += chunk) work(from, std::min(chunk, n - from));
}

// add(part(from, length)), in order, for each chunk of n elements. Threads first compute all parts, so that none waits for
// another's: each such wait takes milliseconds where another program has their core.
template <class Part, class Add>
void add_chunks(ptrdiff_t n, int threads, Part part, Add add) {
    using Result = decltype(part(n, n));
    ptrdiff_t count = (n + chunk - 1) / chunk;
    std::unique_ptr<Result[]> parts(threads > 1 ? new (std::nothrow) Result[count] : nullptr);
    if (!parts) {  // or no memory for them
        for (ptrdiff_t from = 0; from < n; from += chunk) add(part(from, std::min(chunk, n - from)));
        return;
    }
    each_chunk(n, threads, [&](ptrdiff_t from, ptrdiff_t length) { parts[from / chunk] = part(from, length); });
    for (ptrdiff_t i = 0; i < count; ++i) add(parts[i]);
}

}  // namespace
