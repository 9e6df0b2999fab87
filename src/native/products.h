// Products of vectors with the Jacobian of softmax (and, since they are alike, of log_softmax with a vector), from the
// probabilities p, without cancellation. Where p is 0, as of masked elements, the vectors do not count, and the result is 0.
#pragma once
#include "anchored.h"
#include "short_rows.h"
#include "stream.h"

namespace {

// Sums of more elements run in lanes.
constexpr ptrdiff_t few = 15;

// Shorter rows are computed some at a time, and not written past the caches: too many of their lines are shared with a neighbour.
constexpr ptrdiff_t long_product = 256;

// Of p above this there is one at most, and only its 1 - p can cancel: 1/2, and what two of them may be rounded up to.
template <class T>
constexpr T peak = T(0.501);

// The first i with p[i] == m; n where there is none.
template <class T>
ptrdiff_t first_equal(const T* p, ptrdiff_t n, T m) {
    using Index = std::make_signed_t<typename Format<T>::Bits>;
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        Index found = 0;
#pragma omp simd reduction(| : found)
        for (ptrdiff_t l = 0; l < lanes; ++l) found |= p[i + l] == m ? 1 : 0;
        if (found) break;
    }
    while (i < n && p[i] != m) ++i;
    return i;
}

// The index of the largest element, the first of several; 0 where there is nothing but NaN.
template <class T>
ptrdiff_t largest(const T* p, ptrdiff_t n) {
    ptrdiff_t from = 0;
    T m = -std::numeric_limits<T>::infinity();
    if (n <= 2 * few) {
        m = short_maximum(p, n);
        for (ptrdiff_t i = n - 1; i >= 0; --i) from += (i - from) * (p[i] == m);  // no branch, which would be mispredicted
        return from;
    }
    for (ptrdiff_t i = 0; i < n; i += block) {
        T of_block = maximum(p + i, std::min(block, n - i));
        if (of_block > m) m = of_block, from = i;
    }
    ptrdiff_t length = std::min(block, n - from), i = first_equal(p + from, length, m);
    return i < length ? from + i : 0;
}

// The sum of what was added up in lanes, see add_term.
template <class T>
Pair total(double* high, double* low) {
    if constexpr (sizeof(T) == 4) {
        fold_sum<lanes / 2>(high);
        return {high[0], 0};
    }
    return total_of<T>(high, low);
}

// high + low += term: for a result of float32 in plain double, for float64 with the rounding errors.
template <class T>
struct Term {
    double value, error;
    Term(double a, double b) : value(a * b), error(sizeof(T) == 8 ? fma(a, b, -(a * b)) : 0) {}
};

// term(0) + ... + term(n - 1): of a few in four parts, of more in lanes.
template <class T, class Function, class Ahead>
[[gnu::always_inline]] inline Pair sum_of(ptrdiff_t n, Function term, Ahead ahead) {
    auto add = [=](double& high, double& low, ptrdiff_t i) __attribute__((always_inline)) {
        Term<T> t = term(i);
        add_term<T>(high, low, t.value, t.error);
    };
    if (n <= few) return in_turn<T>(n, [=](Pair& sum, ptrdiff_t i) { add(sum.high, sum.low, i); });
    double high[lanes] = {}, low[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        ahead(i + block);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) add(high[l], low[l], i + l);
    }
    if (i < n) {
        double value[2 * lanes] = {}, error[2 * lanes] = {};
        ptrdiff_t last = n - lanes, again = i - last;
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            Term<T> t = term(last + l);
            value[l] = t.value, error[l] = t.error;
        }
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) add_term<T>(high[l], low[l], value[again + l], error[again + l]);
    }
    return total<T>(high, low);
}

template <class T, class Function>
[[gnu::always_inline]] inline Pair sum_of(ptrdiff_t n, Function term) {
    return sum_of<T>(n, term, [](ptrdiff_t) {});
}

template <class T>
[[gnu::always_inline]] inline T counted(T p, T v) {
    return p == 0 ? 0 : v;
}

// v - v_k; if masked, 0 where p is 0.
template <bool masked = true, class T>
[[gnu::always_inline]] inline double relative(T p, T v, T v_k) {
    if (masked) v = p == 0 ? v_k : v;
    return static_cast<double>(v) - v_k;
}

// The sum of p * (v - v_k).
template <bool masked, class T>
Pair sum_of_products(const T* p, const T* v, ptrdiff_t n, T v_k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i], relative<masked>(p[i], v[i], v_k)); },
                     [=](ptrdiff_t i) { fetch<false>(p + i, lanes), fetch<false>(v + i, lanes); });
}

template <class T>
Pair weighted_mean(const T* p, const T* v, ptrdiff_t n, T v_k, int threads) {
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_products<true>(p + from, v + from, length, v_k);
    });
}

// Of up to a chunk of a row of float64.
inline Pair sum_of_products(const double* p, const double* v, ptrdiff_t n, Reference r) {
    if (n > few) {
        Pair sum = anchored_sum(p, v, n, r.v, expected_sum(v, n, r));
        if (!std::isnan(sum.high)) return sum;
    }
    return sum_of_products<false>(p, v, n, r.v);
}

// Of a float32 row, or a part of it: the sums of p * (v - v[r]) and of p, in double.
struct Weighted {
    double sum, weight;
};

// sum / weight, without a division where the weight is near 1: 1 / (1 - e) = (1 + e) (1 + e^2) (1 + e^4) up to e^8.
template <class Wide>
[[gnu::always_inline]] inline bool is_near_1(Wide weight) {
    return std::fabs(1 - weight) < Wide(0x1p-6);
}
template <class Wide>
[[gnu::always_inline]] inline Wide mean_near_1(Wide sum, Wide weight) {
    Wide e = 1 - weight, square = e * e;
    return sum * (1 + e) * (fma(square, square, Wide(1)) * (1 + square));
}
inline double mean_of(Weighted all) { return is_near_1(all.weight) ? mean_near_1(all.sum, all.weight) : all.sum / all.weight; }

inline Weighted short_weighted(const float* p, const float* v, ptrdiff_t n, double v_r) {
    double sum = 0, sum_1 = 0, sum_2 = 0, sum_3 = 0, weight = 0, weight_1 = 0, weight_2 = 0, weight_3 = 0;
    ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) {
        sum = fma(double{p[i]}, v[i] - v_r, sum), weight += p[i];
        sum_1 = fma(double{p[i + 1]}, v[i + 1] - v_r, sum_1), weight_1 += p[i + 1];
        sum_2 = fma(double{p[i + 2]}, v[i + 2] - v_r, sum_2), weight_2 += p[i + 2];
        sum_3 = fma(double{p[i + 3]}, v[i + 3] - v_r, sum_3), weight_3 += p[i + 3];
    }
    for (; i < n; ++i) sum = fma(double{p[i]}, v[i] - v_r, sum), weight += p[i];
    return {(sum + sum_1) + (sum_2 + sum_3), (weight + weight_1) + (weight_2 + weight_3)};
}

// The last vector of more than a few goes over some again, which do not count then.
inline Weighted weighted(const float* p, const float* v, ptrdiff_t n, double v_r) {
    if (n <= few) return short_weighted(p, v, n, v_r);
    double sum[lanes] = {}, weight[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        fetch<false>(p + i + block, lanes);
        fetch<false>(v + i + block, lanes);
        double own_p[lanes], own_v[lanes];
        const double *w = as_doubles(p + i, own_p), *u = as_doubles(v + i, own_v);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) sum[l] = fma(w[l], u[l] - v_r, sum[l]), weight[l] += w[l];
    }
    if (i < n) {
        ptrdiff_t last = n - lanes, again = i - last;
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            double w = l < again ? 0 : p[last + l];
            sum[l] = fma(w, v[last + l] - v_r, sum[l]), weight[l] += w;
        }
    }
    fold_sum<lanes / 2>(sum);
    fold_sum<lanes / 2>(weight);
    return {sum[0], weight[0]};
}

inline Weighted weighted(const float* p, const float* v, ptrdiff_t n, double v_r, int threads) {
    if (n <= chunk) return weighted(p, v, n, v_r);
    Weighted all{0, 0};
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return weighted(p + from, v + from, length, v_r); },
               [&](Weighted part) { all.sum += part.sum, all.weight += part.weight; });
    return all;
}

// The first element that is not negligible. Doubles can tell the mean from its v: they differ by more than a 2^26th of what any
// v differs from it, unless it has all the weight. (To look for the largest would take another pass.)
constexpr float negligible = 0x1p-26f;

template <class T>
ptrdiff_t first_with_weight(const T* p, ptrdiff_t n, ptrdiff_t stride = 1) {
    ptrdiff_t r = 0;
    while (r < n - 1 && !(static_cast<float>(p[r * stride]) >= negligible)) ++r;
    return r;
}

// One element of softmax_vjp, or of log_softmax_jvp, h being v less its mean.
template <Function function, class T, class Work>
[[gnu::always_inline]] inline T product_of(T p, Work h) {
    if constexpr (function == SOFTMAX_VJP) return static_cast<T>(p * h);
    else return p == 0 ? 0 : static_cast<T>(h);
}

// The same of h = d - rest: in float32, where rest is less than a unit of d or so, h is not rounded a second time.
template <Function function, class T, class Work>
[[gnu::always_inline]] inline T product_of(T p, Work d, Work rest) {
    if constexpr (function == SOFTMAX_VJP && sizeof(Work) == 4) return fma(p, d, -(p * rest));
    else return product_of<function>(p, d - rest);
}

template <Function function, class Work>
void fast_chunk(const float* p, const float* v, float* y, ptrdiff_t n, Work c, Work rest) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = product_of<function>(p[i], v[i] - c, rest);
}

// Writes at(i), which is computed from p and v, to y[i]: to the stream of a row before, if there is one that no other thread uses.
template <class T, class At>
[[gnu::always_inline]] inline void stream_product(Stream<T>* stream, const T* p, const T* v, T* y, ptrdiff_t n, At at) {
    Stream<T> own;
    (stream ? *stream : own).write(y, n, is_just_ahead(y, p) || is_just_ahead(y, v), at);
}

// c + rest is what the elements of a row of v are less than: v_r and the mean of v - v_r.
[[gnu::always_inline]] inline void put(float& c, float& rest, double v_r, double mean) {
    c = static_cast<float>(v_r + mean), rest = static_cast<float>((v_r - c) + mean);
}

// A row of float32, written to the stream if there is one; false where v is not finite, or no element counts.
template <Function function>
bool fast_row(const float* p, const float* v, float* y, ptrdiff_t n, int threads, Stream<float>* stream) {
    double v_r = v[first_with_weight(p, n)];
    Weighted all = weighted(p, v, n, v_r, threads);
    double mean = mean_of(all);
    if (!std::isfinite(mean)) return false;
    float c, rest;
    put(c, rest, v_r, mean);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        auto ps = p + from, vs = v + from;
        if (!stream) return fast_chunk<function>(ps, vs, y + from, length, c, rest);
        stream_product(threads > 1 ? nullptr : stream, ps, vs, y + from, length,
                       [=](ptrdiff_t i) { return product_of<function>(ps[i], vs[i] - c, rest); });
    });
    return true;
}

template <Function function, bool masked, class T>
void product_chunk(const T* p, const T* v, T* y, ptrdiff_t n, T v_k, double mean) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = product_of<function>(p[i], relative<masked>(p[i], v[i], v_k) - mean);
}

// p * (h - mean), h = v - v_k.
template <Function function, bool masked, class T>
void relative_product(const T* p, const T* v, T* y, ptrdiff_t n, T v_k, double mean, int threads, Stream<T>* stream) {
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        auto ps = p + from, vs = v + from;
        if (!stream || n < long_product) return product_chunk<function, masked>(ps, vs, y + from, length, v_k, mean);
        stream_product(threads > 1 ? nullptr : stream, ps, vs, y + from, length,
                       [=](ptrdiff_t i) { return product_of<function>(ps[i], relative<masked>(ps[i], vs[i], v_k) - mean); });
    });
}

// A row of float64; false, and nothing written, where the mean is not finite.
template <Function function>
bool fast_row(const double* p, const double* v, double* y, ptrdiff_t n, int threads, Stream<double>* stream) {
    Reference reference = reference_of(p, v, n);
    double mean = rounded(sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_products(p + from, v + from, length, reference);
    }));
    if (!std::isfinite(mean)) return false;
    relative_product<function, false>(p, v, y, n, reference.v, mean, threads, stream);
    return true;
}

// y = p * (v - sum(p * v)) = p * (h - sum(p * h)), h = v - v[k]: what all of v have in common drops out exactly.
// Of log_softmax_jvp, y = h - sum(p * h).
template <Function function, class T>
void product_with_jacobian(const T* p, const T* v, T* y, ptrdiff_t n, int threads, Stream<T>* stream) {
    if (fast_row<function>(p, v, y, n, threads, stream)) return;
    ptrdiff_t k = largest(p, n);
    T v_k = counted(p[k], v[k]);
    double mean = rounded(weighted_mean(p, v, n, v_k, threads));
    relative_product<function, true>(p, v, y, n, v_k, mean, threads, stream);
}

// Short rows, some at a time: what depends on their sums, and takes long, is computed for all of them at once.
template <Function function>
void short_products(const float* p, const float* v, float* y, ptrdiff_t n, ptrdiff_t count) {
    constexpr ptrdiff_t at_a_time = 16;
    double v_r[at_a_time], mean[at_a_time];
    float c[at_a_time], rest[at_a_time];
    Weighted all[at_a_time];
    for (ptrdiff_t some; count > 0; count -= some, p += some * n, v += some * n, y += some * n) {
        some = std::min(at_a_time, count);
        for (ptrdiff_t r = 0; r < some; ++r) {
            v_r[r] = v[r * n + first_with_weight(p + r * n, n)];
            all[r] = weighted(p + r * n, v + r * n, n, v_r[r], 1);
        }
        for (ptrdiff_t r = 0; r < some; ++r) mean[r] = mean_of(all[r]);
#pragma omp simd
        for (ptrdiff_t r = 0; r < some; ++r) put(c[r], rest[r], v_r[r], mean[r]);
        for (ptrdiff_t r = 0; r < some; ++r) {
            ptrdiff_t at = r * n;
            fetch<true>(y + at + some * n, n);
            if (!std::isfinite(mean[r])) product_with_jacobian<function, float>(p + at, v + at, y + at, n, 1, nullptr);
            else if (n <= few) fast_chunk<function>(p + at, v + at, y + at, n, v_r[r], mean[r]);
            else fast_chunk<function>(p + at, v + at, y + at, n, c[r], rest[r]);
        }
    }
}

template <Function function>
void short_products(const double* p, const double* v, double* y, ptrdiff_t n, ptrdiff_t count) {
    constexpr ptrdiff_t at_a_time = 8;
    Reference reference[at_a_time];
    double mean[at_a_time];
    for (ptrdiff_t some; count > 0; count -= some, p += some * n, v += some * n, y += some * n) {
        some = std::min(at_a_time, count);
        for (ptrdiff_t r = 0; r < some; ++r) reference[r] = reference_of(p + r * n, v + r * n, n);
        for (ptrdiff_t r = 0; r < some; ++r) mean[r] = rounded(sum_of_products(p + r * n, v + r * n, n, reference[r]));
        for (ptrdiff_t r = 0; r < some; ++r) {
            ptrdiff_t at = r * n;
            fetch<true>(y + at + some * n, n);
            if (std::isfinite(mean[r])) product_chunk<function, false>(p + at, v + at, y + at, n, reference[r].v, mean[r]);
            else product_with_jacobian<function, double>(p + at, v + at, y + at, n, 1, nullptr);
        }
    }
}

// The sum of p * (v - v_k) * (u - u_k).
template <class T>
Pair sum_of_products(const T* p, const T* v, const T* u, ptrdiff_t n, T v_k, T u_k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i] * relative(p[i], v[i], v_k), relative(p[i], u[i], u_k)); });
}

template <class T>
void vjp_derivative_chunk(const T* p, const T* v, const T* u, T* y, ptrdiff_t n, T v_k, T u_k, double v_mean, double u_mean,
                          double covariance) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) {
        double a = relative(p[i], v[i], v_k) - v_mean, b = relative(p[i], u[i], u_k) - u_mean;
        y[i] = static_cast<T>(p[i] * (a * b - covariance));
    }
}

// y = p * ((v - sum(p * v)) * (u - sum(p * u)) - covariance), again with v and u relative to those of the largest p.
template <class T>
void softmax_vjp_derivative(const T* p, const T* v, const T* u, T* y, ptrdiff_t n, int threads) {
    ptrdiff_t k = largest(p, n);
    T v_k = counted(p[k], v[k]), u_k = counted(p[k], u[k]);
    double v_mean = rounded(weighted_mean(p, v, n, v_k, threads)), u_mean = rounded(weighted_mean(p, u, n, u_k, threads));
    Pair products = sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_products(p + from, v + from, u + from, length, v_k, u_k);
    });
    double covariance = rounded(products) - v_mean * u_mean;
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        vjp_derivative_chunk(p + from, v + from, u + from, y + from, length, v_k, u_k, v_mean, u_mean, covariance);
    });
}

}  // namespace
