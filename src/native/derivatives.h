// Derivatives of softmax and log_softmax from the probabilities p, without cancellation: relative to k, the largest of the
// row. Where p is 0, as of masked elements, the vectors do not count, and the result is 0.
#pragma once
#include "short_rows.h"
#include "stream.h"

namespace {

// The first i with p[i] == m; n where there is none.
template <class T>
ptrdiff_t first_equal(const T* p, ptrdiff_t n, T m) {
    using Index = std::make_signed_t<typename Format<T>::Bits>;
    Index first = static_cast<Index>(n);
#pragma omp simd reduction(min : first)
    for (Index i = 0; i < static_cast<Index>(n); ++i) {
        Index found = p[i] == m ? i : static_cast<Index>(n);
        first = found < first ? found : first;
    }
    return first;
}

// The index of the largest element, the first of several; 0 where there is nothing but NaN.
template <class T>
ptrdiff_t largest(const T* p, ptrdiff_t n) {
    ptrdiff_t from = 0;
    T m = -std::numeric_limits<T>::infinity();
    if (n <= short_row) {
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

// high + low += term: for a result of float32 in plain double, for float64 with the rounding errors.
template <class T>
struct Term {
    double value, error;
    explicit Term(double v) : value(v), error(0) {}
    Term(double a, double b) : value(a * b), error(sizeof(T) == 8 ? fma(a, b, -(a * b)) : 0) {}
};

// The sum of term(0), ..., term(n - 1): of a short row one after the other, of a long one in lanes.
template <class T, class Function>
[[gnu::always_inline]] inline Pair sum_of(ptrdiff_t n, Function term) {
    Pair sum{0, 0};
    if (n <= short_row) {
        for (ptrdiff_t i = 0; i < n; ++i) {
            Term<T> t = term(i);
            add_term<T>(sum.high, sum.low, t.value, t.error);
        }
        return sum;
    }
    double high[lanes] = {}, low[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            Term<T> t = term(i + l);
            add_term<T>(high[l], low[l], t.value, t.error);
        }
    }
    for (; i < n; ++i) {
        Term<T> t = term(i);
        add_term<T>(high[i % lanes], low[i % lanes], t.value, t.error);
    }
    for (ptrdiff_t l = 0; l < lanes; ++l) accumulate(sum.high, sum.low, high[l], low[l]);
    return sum;
}

template <class T>
T counted(T p, T v) {
    return p == 0 ? 0 : v;
}

// v - v_k, 0 where p is 0.
template <class T>
[[gnu::always_inline]] inline double relative(T p, T v, T v_k) {
    v = p == 0 ? v_k : v;
    return static_cast<double>(v) - v_k;
}

// The sum of p * (v - v_k).
template <class T>
Pair sum_of_products(const T* p, const T* v, ptrdiff_t n, T v_k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i], relative(p[i], v[i], v_k)); });
}

template <class T>
Pair weighted_mean(const T* p, const T* v, ptrdiff_t n, T v_k, int threads) {
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_products(p + from, v + from, length, v_k);
    });
}

// Adds up 2 * half elements, in x[0].
template <ptrdiff_t half, class T>
[[gnu::always_inline]] inline void fold_sum(T* x) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < half; ++l) x[l] += x[l + half];
    if constexpr (half > 1) fold_sum<half / 2>(x);
}

// Of a float32 row, or a part of it: the sum of p * (v - c), and no more than that of its magnitude.
struct Centre {
    double sum = 0, magnitude = 0;

    // Whether c is so near the mean of v that rounding v - c is harmless: the mean of abs(v - v[k]), whatever k, is at least
    // half of magnitude - abs(sum).
    bool is_near() const { return std::abs(sum) <= magnitude / 2; }
};

// Four products are added in float32 before they go to double. (One loop instead of three would keep fewer loads in flight.)
[[gnu::always_inline]] inline void add_products(const float* p, const float* v, float c, double* sum, float* magnitude) {
    float product[lanes];
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) {
        float a = p[l] * (v[l] - c), b = p[l + lanes] * (v[l + lanes] - c);
        float d = p[l + 2 * lanes] * (v[l + 2 * lanes] - c), e = p[l + 3 * lanes] * (v[l + 3 * lanes] - c);
        product[l] = (a + b) + (d + e);
    }
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) magnitude[l] += std::abs(product[l]);
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) sum[l] += product[l];
}

// The same of the first `lanes` elements but `skip`.
[[gnu::always_inline]] inline void add_some_products(const float* p, const float* v, float c, int skip, double* sum, float* magnitude) {
#pragma omp simd
    for (int l = 0; l < lanes; ++l) {
        float weight = l >= skip ? p[l] : 0, product = weight * (v[l] - c);
        sum[l] += product, magnitude[l] += std::abs(product);
    }
}

inline Centre centre_of(const float* p, const float* v, ptrdiff_t n, float c) {
    double sum[lanes] = {};
    float magnitude[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) add_products(p + i, v + i, c, sum, magnitude);
    for (; i + lanes <= n; i += lanes) add_some_products(p + i, v + i, c, 0, sum, magnitude);
    if (i < n && n >= lanes) {
        ptrdiff_t last = n - lanes;
        add_some_products(p + last, v + last, c, static_cast<int>(i - last), sum, magnitude);
    } else {
        for (; i < n; ++i) sum[0] += p[i] * (v[i] - c), magnitude[0] += std::abs(p[i] * (v[i] - c));
    }
    fold_sum<lanes / 2>(sum);
    fold_sum<lanes / 2>(magnitude);
    return {sum[0], magnitude[0]};
}

inline Centre centre_of(const float* p, const float* v, ptrdiff_t n, float c, int threads) {
    if (n <= chunk) return centre_of(p, v, n, c);
    Centre all;
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return centre_of(p + from, v + from, length, c); },
               [&](const Centre& part) { all.sum += part.sum, all.magnitude += part.magnitude; });
    return all;
}

// A number c near the mean sum(p * v), and the mean of v - c, for a result in float32; false where they are not finite, or so
// small that products may have been subnormal.
inline bool near_mean(const float* p, const float* v, ptrdiff_t n, int threads, float& c, float& mean) {
    float first[lanes];
    std::copy_n(v, lanes, first);
    fold_sum<lanes / 2>(first);
    c = first[0] / lanes;
    Centre centre = centre_of(p, v, n, c, threads);
    if (!centre.is_near()) {
        c += static_cast<float>(centre.sum);
        centre = centre_of(p, v, n, c, threads);
    }
    if (!centre.is_near()) {  // one p is 1 but for rounding: the mean of the others is that of their distance from its v
        c = v[largest(p, n)];
        centre = centre_of(p, v, n, c, threads);
    }
    mean = static_cast<float>(centre.sum);
    return std::isfinite(mean) && std::abs(mean) > 0x1p-100f;
}

// Of a short row of float32, in double: relative to an element that is not negligible, whose v the mean can be told from.
inline bool short_mean(const float* p, const float* v, ptrdiff_t n, double& c, double& mean) {
    ptrdiff_t i = 0;
    while (i < n - 1 && !(p[i] >= 0x1p-26f)) ++i;
    c = v[i];
    double sum = 0, sum_1 = 0, sum_2 = 0, sum_3 = 0, weight = 0, weight_1 = 0, weight_2 = 0, weight_3 = 0;
    for (i = 0; i + 4 <= n; i += 4) {
        sum += p[i] * (v[i] - c), weight += p[i];
        sum_1 += p[i + 1] * (v[i + 1] - c), weight_1 += p[i + 1];
        sum_2 += p[i + 2] * (v[i + 2] - c), weight_2 += p[i + 2];
        sum_3 += p[i + 3] * (v[i + 3] - c), weight_3 += p[i + 3];
    }
    for (; i < n; ++i) sum += p[i] * (v[i] - c), weight += p[i];
    mean = ((sum + sum_1) + (sum_2 + sum_3)) / ((weight + weight_1) + (weight_2 + weight_3));
    return std::isfinite(mean);
}

// One element of softmax_vjp, or of log_softmax_jvp.
template <Function function, class Work, class T>
[[gnu::always_inline]] inline T centred(T p, T v, Work c, Work mean) {
    Work h = (v - c) - mean;
    if constexpr (function == SOFTMAX_VJP) return static_cast<T>(p * h);
    else return p == 0 ? 0 : static_cast<T>(h);
}

template <Function function, class Work>
void fast_chunk(const float* p, const float* v, float* y, ptrdiff_t n, Work c, Work mean) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = centred<function>(p[i], v[i], c, mean);
}

template <Function function>
void fast_stream(const float* p, const float* v, float* y, ptrdiff_t n, float c, float mean) {
    bool from_end = is_just_ahead(y, p) || is_just_ahead(y, v);
    stream(y, n, from_end, [=](ptrdiff_t i) { return centred<function>(p[i], v[i], c, mean); });
}

// A row of float32; false where that takes more: where v is not finite, or no element counts.
template <Function function>
bool fast_row(const float* p, const float* v, float* y, ptrdiff_t n, int threads, bool streams) {
    if (n <= short_row) {
        double c, mean;
        if (!short_mean(p, v, n, c, mean)) return false;
        fast_chunk<function>(p, v, y, n, c, mean);
        return true;
    }
    float c, mean;
    if (!near_mean(p, v, n, threads, c, mean)) return false;
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        (streams ? fast_stream<function> : fast_chunk<function, float>)(p + from, v + from, y + from, length, c, mean);
    });
    return true;
}

template <Function function, class T>
void product_chunk(const T* p, const T* v, T* y, ptrdiff_t n, T v_k, double mean) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) {
        double h = relative(p[i], v[i], v_k) - mean;
        if constexpr (function == SOFTMAX_VJP) y[i] = static_cast<T>(p[i] * h);
        else y[i] = p[i] == 0 ? 0 : static_cast<T>(h);
    }
}

// y = p * (v - sum(p * v)) = p * (h - sum(p * h)), h = v - v[k]: what all of v have in common drops out exactly.
// Of log_softmax_jvp, y = h - sum(p * h).
template <Function function, class T>
void product_with_jacobian(const T* p, const T* v, T* y, ptrdiff_t n, int threads, bool streams) {
    if constexpr (sizeof(T) == 4)
        if (fast_row<function>(p, v, y, n, threads, streams)) return;
    ptrdiff_t k = largest(p, n);
    T v_k = counted(p[k], v[k]);
    double mean = rounded(weighted_mean(p, v, n, v_k, threads));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        product_chunk<function>(p + from, v + from, y + from, length, v_k, mean);
    });
}

// The sum of p * (v - v_k) * (u - u_k).
template <class T>
Pair sum_of_products(const T* p, const T* v, const T* u, ptrdiff_t n, T v_k, T u_k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i] * relative(p[i], v[i], v_k), relative(p[i], u[i], u_k)); });
}

template <class T>
void vjp_derivative_chunk(const T* p, const T* v, const T* u, T* y, ptrdiff_t n, T v_k, T u_k, Pair mean, double covariance) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) {
        double a = relative(p[i], v[i], v_k) - mean.high, b = relative(p[i], u[i], u_k) - mean.low;
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
        vjp_derivative_chunk(p + from, v + from, u + from, y + from, length, v_k, u_k, {v_mean, u_mean}, covariance);
    });
}

// The sum of all v but v[k], where p is not 0.
template <class T>
Pair sum_of_others(const T* p, const T* v, ptrdiff_t n, ptrdiff_t k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(i == k || p[i] == 0 ? 0 : static_cast<double>(v[i])); });
}

template <class T>
Pair sum_of_others(const T* p, const T* v, ptrdiff_t n, ptrdiff_t k, int threads) {
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return sum_of_others(p + from, v + from, length, k - from); });
}

template <class T>
void log_softmax_vjp_chunk(const T* p, const T* v, T* y, ptrdiff_t n, Pair sum) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) {
        T result;
        if constexpr (sizeof(T) == 8) result = fma(-p[i], sum.high, v[i]) - p[i] * sum.low;
        else result = static_cast<T>(v[i] - p[i] * sum.high);
        y[i] = p[i] == 0 ? 0 : result;
    }
}

// y = v - p * sum(v); at the largest p, (sum of the other p) * v - p * (sum of the other v).
template <class T>
void log_softmax_vjp(const T* p, const T* v, T* y, ptrdiff_t n, int threads) {
    ptrdiff_t k = largest(p, n);
    double p_k = p[k], v_k = counted(p[k], v[k]);
    Pair other_p = sum_of_others(p, p, n, k, threads), other_v = sum_of_others(p, v, n, k, threads), sum = other_v;
    accumulate(sum.high, sum.low, v_k, 0);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { log_softmax_vjp_chunk(p + from, v + from, y + from, length, sum); });
    y[k] = static_cast<T>(rounded(other_p) * v_k - p_k * rounded(other_v));
}

// What is left of 1 - p[i]: for the largest p, the sum of the others.
template <class T>
struct OneLess {
    const T* p;
    ptrdiff_t k;
    double others;
    OneLess(const T* p, ptrdiff_t n, int threads) : p(p), k(largest(p, n)), others(rounded(sum_of_others(p, p, n, k, threads))) {}
    double operator()(ptrdiff_t i) const { return i == k ? others : 1 - static_cast<double>(p[i]); }
};

template <class T>
void softmax_jacobian_row(const T* p, T* y, ptrdiff_t n, ptrdiff_t i, double one_less) {
    T p_i = p[i];
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = 0 - p_i * p[j];
    y[i] = static_cast<T>(p_i * one_less);
}

// y[i, j] = p[i] * ((i == j) - p[j]).
template <class T>
void softmax_jacobian(const T* p, T* y, ptrdiff_t n, int threads) {
    OneLess<T> one_less(p, n, threads);
    each(n, threads, [=](ptrdiff_t i) { softmax_jacobian_row(p, y + i * n, n, i, one_less(i)); });
}

template <class T>
void softmax_jacobian_diagonal(const T* p, T* y, ptrdiff_t n) {
    OneLess<T> one_less(p, n, 1);
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = static_cast<T>(p[i] * one_less(i));
}

template <class T>
void log_softmax_jacobian_row(const T* p, T* y, ptrdiff_t n, ptrdiff_t i, double one_less) {
    if (p[i] == 0) {
        std::fill_n(y, n, T(0));
        return;
    }
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = 0 - p[j];
    y[i] = static_cast<T>(one_less);
}

// y[i, j] = (i == j) - p[j].
template <class T>
void log_softmax_jacobian(const T* p, T* y, ptrdiff_t n, int threads) {
    OneLess<T> one_less(p, n, threads);
    each(n, threads, [=](ptrdiff_t i) { log_softmax_jacobian_row(p, y + i * n, n, i, one_less(i)); });
}

}  // namespace
