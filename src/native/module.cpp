// The module fastsoftmax._native: checks what Python hands over, chooses the instruction set, calls the kernels.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <numpy/arrayobject.h>
#include <numpy/ufuncobject.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

#include "exp2.h"
#include "kernels.h"

namespace {

const Kernels* const compiled[] = {
#if defined(FASTSOFTMAX_X86)
    &kernels_avx512, &kernels_avx2, &kernels_baseline,
#elif defined(FASTSOFTMAX_ARM64)
    &kernels_neon,
#else
    &kernels_baseline,
#endif
};

bool runs_here(const Kernels* k) {
#if defined(FASTSOFTMAX_X86)
    if (!std::strcmp(k->name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (!std::strcmp(k->name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    return k->name != nullptr;
}

const Kernels* kernels;  // the chosen ones

constexpr npy_intp few = 8192;  // fewer elements are computed, or written, without releasing the GIL
constexpr npy_intp share = 1 << 16;  // a thread of its own pays for that many

constexpr npy_intp cached = 24 << 20;  // bytes that a cache may keep

bool is_forked_child = false;  // there OpenMP would wait for threads that the fork did not copy

// Whether an array is of the bfloat16 that ml_dtypes has registered with NumPy.
bool is_bfloat16(PyArrayObject* a) {
    if (!PyTypeNum_ISUSERDEF(PyArray_TYPE(a)) || PyArray_ITEMSIZE(a) != 2) return false;
    const char *name = PyArray_DESCR(a)->typeobj->tp_name, *dot = std::strrchr(name, '.');
    return !std::strcmp(dot ? dot + 1 : name, "bfloat16");
}

Type type_of(PyArrayObject* a) {
    switch (PyArray_TYPE(a)) {
        case NPY_FLOAT: return FLOAT32;
        case NPY_DOUBLE: return FLOAT64;
        case NPY_HALF: return FLOAT16;
        default: return is_bfloat16(a) ? BFLOAT16 : TYPES;
    }
}

bool is_rows(PyArrayObject* a) {
    return type_of(a) != TYPES && PyArray_NDIM(a) > 0 && PyArray_ISCARRAY_RO(a) && PyArray_SIZE(a) > 0;
}

// How many threads pay for so many elements, the calling one included.
int threads_for(npy_intp elements) {
#ifdef _OPENMP
    if (!is_forked_child && elements >= 2 * share)
        return static_cast<int>(std::min<npy_intp>(omp_get_max_threads(), elements / share));
#else
    (void)elements;
#endif
    return 1;
}

// The kernel over all rows, shared out among threads; of few rows or very long ones, each is shared.
bool in_threads(Kernel kernel, Rows rows, int threads, npy_intp scratch) {
    constexpr npy_intp very_long = 1 << 17;
    npy_intp unit = rows.after > 1 ? 8 : 1, units = rows.count / unit;  // narrower tiles of columns are slow
    if (threads == 1 || units < threads || (unit == 1 && rows.n >= very_long * threads)) {
        rows.threads = threads;
        return kernel(rows);
    }
    bool invalid = false;
#ifdef _OPENMP
    npy_intp pieces = std::min<npy_intp>(8 * threads, units);  // several each: another program may have one of the cores
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(|| : invalid)
    for (npy_intp i = 0; i < pieces; ++i) {
        Rows part = rows;
        part.first = units * i / pieces * unit;
        part.count = (i + 1 == pieces ? rows.count : units * (i + 1) / pieces * unit) - part.first;
        if (rows.scratch) part.scratch = static_cast<char*>(rows.scratch) + omp_get_thread_num() * scratch;
        invalid = kernel(part) || invalid;
    }
#endif
    return invalid;
}

constexpr bool is_jacobian(Function f) { return f == SOFTMAX_JACOBIAN || f == LOG_SOFTMAX_JACOBIAN; }

// How many vectors a derivative multiplies.
constexpr int vectors(Function f) {
    return f == SOFTMAX_VJP_DERIVATIVE ? 2 : f == SOFTMAX_VJP || f == LOG_SOFTMAX_VJP || f == LOG_SOFTMAX_JVP;
}

// Runs the kernel over all rows; false with an exception set, if NumPy's error state or a lack of memory asks for one.
bool run(Function function, PyArrayObject* x, Rows rows) {
    Kernel kernel = kernels->rows[function][type_of(x)];
    npy_intp elements = rows.count * rows.n * (is_jacobian(function) || function == SOFTMAX_JACOBIAN_EIGENVALUES ? rows.n : 1);
    int threads = threads_for(elements);
    npy_intp needed = rows.after > 1 ? column_scratch(rows.n) : rows.where && function == LOGSUMEXP ? rows.n : 0;
    npy_intp scratch = needed * PyArray_ITEMSIZE(x);
    if (scratch && !(rows.scratch = PyMem_RawMalloc(scratch * threads))) return PyErr_NoMemory() != nullptr;
    rows.streams = elements * PyArray_ITEMSIZE(x) > cached;
    bool invalid;
    if (elements < few) {
        invalid = kernel(rows);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        invalid = in_threads(kernel, rows, threads, scratch);
        Py_END_ALLOW_THREADS;
    }
    PyMem_RawFree(rows.scratch);
    static const char* const names[] = {"softmax", "log_softmax", "logsumexp"};  // of the others, only losses signal
    const char* name = function == CROSS_ENTROPY ? "cross_entropy" : names[function];
    return !invalid || PyUFunc_GiveFloatingpointErrors(name, NPY_FPE_INVALID) == 0;
}

npy_intp length(PyArrayObject* x) { return PyArray_DIM(x, PyArray_NDIM(x) - 1); }

bool overlap(PyArrayObject* a, PyArrayObject* b) {
    return PyArray_BYTES(a) < PyArray_BYTES(b) + PyArray_NBYTES(b) && PyArray_BYTES(b) < PyArray_BYTES(a) + PyArray_NBYTES(a);
}

// Whether out can take a result of such a shape, of the dtype of x, directly: in memory that is not that of x, or all of it
// and `in_place`.
bool takes_directly(PyObject* out, PyArrayObject* x, int ndim, const npy_intp* dims, bool in_place) {
    if (!PyArray_CheckExact(out)) return false;
    auto y = reinterpret_cast<PyArrayObject*>(out);
    if (PyArray_TYPE(y) != PyArray_TYPE(x) || !PyArray_ISCARRAY(y)) return false;
    if (PyArray_NDIM(y) != ndim || !PyArray_CompareLists(dims, PyArray_DIMS(y), ndim)) return false;
    return (in_place && PyArray_DATA(x) == PyArray_DATA(y)) || !overlap(x, y);
}

// `rows` computed into out, or a new array of such a shape: what Python gets.
PyObject* computed(Function function, PyArrayObject* x, Rows rows, PyObject* out, int ndim, const npy_intp* dims) {
    PyObject* y = out == Py_None ? PyArray_SimpleNew(ndim, dims, PyArray_TYPE(x)) : Py_NewRef(out);
    if (!y) return nullptr;
    auto array = reinterpret_cast<PyArrayObject*>(y);
    rows.y = PyArray_DATA(array);
    if (!run(function, x, rows)) Py_CLEAR(y);
    return y && ndim == 0 && out == Py_None ? PyArray_Return(array) : y;
}

// A temperature that is a number of Python's (or NumPy's float64); 0 for anything else, which others look at.
double to_temperature(PyObject* temperature) {
    if (PyFloat_Check(temperature)) return PyFloat_AS_DOUBLE(temperature);
    int overflow;
    return PyLong_CheckExact(temperature) ? static_cast<double>(PyLong_AsLongAndOverflow(temperature, &overflow)) : 0;
}

// The axis of x that an argument names; -1 where it does not, or it is none that we take directly.
int to_axis(PyObject* axis, PyArrayObject* x) {
    int overflow, ndim = PyArray_NDIM(x);
    if (!PyLong_CheckExact(axis)) return -1;
    long a = PyLong_AsLongAndOverflow(axis, &overflow);
    if (a < 0) a += ndim;
    return !overflow && a >= 0 && a < ndim ? static_cast<int>(a) : -1;
}

// function(x, axis, where, temperature, out, dtype): for C-contiguous arrays of floats along one axis, and no more than
// moderate temperatures; None for anything else, which is not looked at further.
template <Function function>
PyObject* direct(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 6) return PyErr_Format(PyExc_TypeError, "6 arguments expected, not %zd", count);
    PyObject *where = args[2], *temperature = args[3], *out = args[4], *dtype = args[5];
    auto x = reinterpret_cast<PyArrayObject*>(args[0]);
    if (!PyArray_CheckExact(args[0]) || !is_rows(x) || dtype != Py_None) Py_RETURN_NONE;
    double t = to_temperature(temperature);
    int axis = to_axis(args[1], x), ndim = PyArray_NDIM(x);
    if (!(t > 0x1p-60 && t < 0x1p60) || axis < 0) Py_RETURN_NONE;
    npy_intp n = PyArray_DIM(x, axis), after = 1, dims[NPY_MAXDIMS];
    for (int i = axis + 1; i < ndim; ++i) after *= PyArray_DIM(x, i);
    if (after > 1 && (PyArray_ITEMSIZE(x) == 2 || where != Py_None)) Py_RETURN_NONE;
    constexpr bool reduces = function == LOGSUMEXP;
    std::copy_n(PyArray_DIMS(x), ndim, dims);
    if (reduces) std::copy(dims + axis + 1, dims + ndim, dims + axis);
    ndim -= reduces;
    if (out != Py_None && !takes_directly(out, x, ndim, dims, !reduces && after == 1)) Py_RETURN_NONE;

    Rows rows{PyArray_DATA(x), nullptr, PyArray_SIZE(x) / n, n, &t};
    rows.after = after;
    if (where != Py_None) {
        auto keep = reinterpret_cast<PyArrayObject*>(where);
        if (!PyArray_CheckExact(where) || PyArray_TYPE(keep) != NPY_BOOL || !PyArray_ISCARRAY_RO(keep)) Py_RETURN_NONE;
        if (!PyArray_SAMESHAPE(keep, x) || (out != Py_None && overlap(keep, reinterpret_cast<PyArrayObject*>(out)))) Py_RETURN_NONE;
        rows.where = static_cast<const bool*>(PyArray_DATA(keep));
    }
    return computed(function, x, rows, out, ndim, dims);
}

// function(p, vectors..., axis, out): for C-contiguous arrays of float32 or float64 along their last axis; None for anything
// else.
template <Function function>
PyObject* direct_product(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr int inputs = 1 + vectors(function);
    if (count != inputs + 2) return PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", inputs + 2, count);
    for (int i = 0; i < inputs; ++i)
        if (!PyArray_CheckExact(args[i])) Py_RETURN_NONE;
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    PyArrayObject* p = a[0];
    int ndim = PyArray_NDIM(p);
    PyObject* out = args[inputs + 1];
    if (!is_rows(p) || !kernels->rows[function][type_of(p)] || to_axis(args[inputs], p) != ndim - 1) Py_RETURN_NONE;
    for (int i = 0; i < inputs; ++i) {
        if (PyArray_TYPE(a[i]) != PyArray_TYPE(p) || !PyArray_ISCARRAY_RO(a[i]) || !PyArray_SAMESHAPE(p, a[i])) Py_RETURN_NONE;
        if (out != Py_None && !takes_directly(out, a[i], ndim, PyArray_DIMS(p), true)) Py_RETURN_NONE;
    }
    npy_intp n = length(p);
    Rows rows{PyArray_DATA(p), nullptr, PyArray_SIZE(p) / n, n};
    rows.v = PyArray_DATA(a[1]);
    if constexpr (inputs == 3) rows.u = PyArray_DATA(a[2]);
    return computed(function, p, rows, out, ndim, PyArray_DIMS(p));
}

// function(p, axis, out), likewise.
template <Function function>
PyObject* direct_jacobian(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 3) return PyErr_Format(PyExc_TypeError, "3 arguments expected, not %zd", count);
    auto p = reinterpret_cast<PyArrayObject*>(args[0]);
    if (!PyArray_CheckExact(args[0]) || !is_rows(p) || !kernels->rows[function][type_of(p)]) Py_RETURN_NONE;
    constexpr npy_intp small = 1 << 28;  // larger ones might not fit the memory, which is looked at elsewhere
    int ndim = PyArray_NDIM(p);
    npy_intp n = length(p), dims[NPY_MAXDIMS + 1];
    if (to_axis(args[1], p) != ndim - 1 || ndim == NPY_MAXDIMS || n > small / PyArray_SIZE(p)) Py_RETURN_NONE;
    std::copy_n(PyArray_DIMS(p), ndim, dims);
    dims[ndim] = n;
    if (args[2] != Py_None && !takes_directly(args[2], p, ndim + 1, dims, false)) Py_RETURN_NONE;
    return computed(function, p, {PyArray_DATA(p), nullptr, PyArray_SIZE(p) / n, n}, args[2], ndim + 1, dims);
}

// Whether a is C-contiguous, writeable, of x's dtype, and has so many elements.
bool takes(PyArrayObject* a, PyArrayObject* x, npy_intp size) {
    return PyArray_ISCARRAY(a) && PyArray_TYPE(a) == PyArray_TYPE(x) && PyArray_SIZE(a) == size;
}

// function_rows(x, y, temperature): all arrays C-contiguous, x and y of one dtype; temperature float64, with one number or
// one a row. function_columns, likewise: along the middle axis of x, of three, and not of 16-bit floats.
template <Function function, bool columns>
PyObject* rows(PyObject*, PyObject* const* args, Py_ssize_t count) {
    bool ok = count == 3 && PyArray_Check(args[0]) && PyArray_Check(args[1]) && PyArray_Check(args[2]);
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    ok = ok && is_rows(a[0]) && (!columns || (PyArray_NDIM(a[0]) == 3 && PyArray_ITEMSIZE(a[0]) > 2));
    if (ok) {
        npy_intp n = columns ? PyArray_DIM(a[0], 1) : length(a[0]), size = PyArray_SIZE(a[0]), given = PyArray_SIZE(a[2]);
        Rows rows{PyArray_DATA(a[0]), PyArray_DATA(a[1]), size / n, n};
        if (columns) rows.after = PyArray_DIM(a[0], 2);
        rows.temperature = static_cast<const double*>(PyArray_DATA(a[2]));
        rows.temperature_stride = given > 1;
        ok = takes(a[1], a[0], function == LOGSUMEXP ? rows.count : size) && PyArray_ISCARRAY_RO(a[2]) &&
             PyArray_TYPE(a[2]) == NPY_DOUBLE && (given == 1 || given == rows.count);
        if (ok && !run(function, a[0], rows)) return nullptr;
    }
    if (!ok) return PyErr_Format(PyExc_TypeError, "contiguous arrays of fitting sizes and dtypes are expected");
    Py_RETURN_NONE;
}

// function_rows(p, y, vectors...): all arrays C-contiguous, of one dtype, float32 or float64.
template <Function function>
PyObject* derivative_rows(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr int arguments = 2 + vectors(function);
    bool ok = count == arguments;
    for (Py_ssize_t i = 0; ok && i < count; ++i) ok = PyArray_Check(args[i]);
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    if (ok = ok && is_rows(a[0]) && kernels->rows[function][type_of(a[0])]; ok) {
        npy_intp n = length(a[0]), size = PyArray_SIZE(a[0]);
        Rows rows{PyArray_DATA(a[0]), PyArray_DATA(a[1]), size / n, n};
        ok = takes(a[1], a[0], is_jacobian(function) ? size * n : size);
        for (int i = 2; i < arguments; ++i)
            ok = ok && PyArray_ISCARRAY_RO(a[i]) && PyArray_TYPE(a[i]) == PyArray_TYPE(a[0]) && PyArray_SIZE(a[i]) == size;
        if constexpr (arguments > 2) rows.v = PyArray_DATA(a[2]);
        if constexpr (arguments > 3) rows.u = PyArray_DATA(a[3]);
        if (ok && !run(function, a[0], rows)) return nullptr;
    }
    if (!ok) return PyErr_Format(PyExc_TypeError, "contiguous arrays of fitting sizes and dtypes are expected");
    Py_RETURN_NONE;
}

// function_rows(x, y, partition, temperature): x and y as above, partition float64 with 4 numbers a row of x (kept up
// to date by partition_rows, whose y is not used), temperature one float64.
template <Function function>
PyObject* parts(PyObject*, PyObject* const* args, Py_ssize_t count) {
    bool ok = count == 4 && PyFloat_Check(args[3]);
    for (Py_ssize_t i = 0; ok && i < 3; ++i) ok = PyArray_Check(args[i]);
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    if (ok = ok && is_rows(a[0]) && kernels->rows[function][type_of(a[0])]; ok) {
        npy_intp n = length(a[0]), size = PyArray_SIZE(a[0]);
        double temperature = PyFloat_AS_DOUBLE(args[3]);
        Rows rows{PyArray_DATA(a[0]), PyArray_DATA(a[1]), size / n, n, &temperature};
        rows.partition = static_cast<Partition*>(PyArray_DATA(a[2]));
        ok = (function == PARTITION || takes(a[1], a[0], size)) && PyArray_ISCARRAY(a[2]) &&
             PyArray_TYPE(a[2]) == NPY_DOUBLE && PyArray_SIZE(a[2]) == 4 * rows.count;
        if (ok && !run(function, a[0], rows)) return nullptr;
    }
    if (!ok) return PyErr_Format(PyExc_TypeError, "contiguous arrays of fitting sizes and dtypes are expected");
    Py_RETURN_NONE;
}

// cross_entropy_rows(x, y, targets, weight, ignored, kept, spread, z_loss, factor, loss): x as above, y for the gradient or None;
// targets int64, one a row, all of them `ignored` or indices of a row, or of the dtype and shape of x; weight of the dtype of x
// or None; loss float64, one a row.
PyObject* cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    bool ok = count == 10 && PyLong_Check(args[4]);
    for (int i : {5, 6, 7, 8}) ok = ok && PyFloat_Check(args[i]);
    for (int i : {0, 1, 2, 3, 9}) ok = ok && (PyArray_Check(args[i]) || (args[i] == Py_None && (i == 1 || i == 3)));
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    if (ok = ok && is_rows(a[0]) && kernels->rows[CROSS_ENTROPY][type_of(a[0])]; ok) {
        PyArrayObject *x = a[0], *targets = a[2], *loss = a[9];
        npy_intp n = length(x), size = PyArray_SIZE(x);
        auto pointer = [=](int i) { return args[i] == Py_None ? nullptr : PyArray_DATA(a[i]); };
        bool are_indices = PyArray_TYPE(targets) == NPY_INT64;
        Losses losses{};
        losses.ignored = PyLong_AsLongLong(args[4]);
        losses.kept = PyFloat_AS_DOUBLE(args[5]);
        losses.spread = PyFloat_AS_DOUBLE(args[6]);
        losses.z_loss = PyFloat_AS_DOUBLE(args[7]);
        losses.factor = PyFloat_AS_DOUBLE(args[8]);
        losses.weight = pointer(3);
        losses.loss = static_cast<double*>(PyArray_DATA(loss));
        Rows rows{PyArray_DATA(x), pointer(1), size / n, n};
        (are_indices ? reinterpret_cast<const void*&>(losses.index) : rows.v) = pointer(2);
        rows.losses = &losses;
        auto fits = [=](int i, npy_intp count) {
            return args[i] == Py_None || (PyArray_ISCARRAY_RO(a[i]) && PyArray_TYPE(a[i]) == PyArray_TYPE(x) && PyArray_SIZE(a[i]) == count);
        };
        ok = fits(1, size) && (args[1] == Py_None || PyArray_ISWRITEABLE(a[1])) && fits(3, n) && PyArray_ISCARRAY(loss) &&
             PyArray_TYPE(loss) == NPY_DOUBLE && PyArray_SIZE(loss) == rows.count &&
             (are_indices ? PyArray_ISCARRAY_RO(targets) && PyArray_SIZE(targets) == rows.count : fits(2, size));
        if (ok && !run(CROSS_ENTROPY, x, rows)) return nullptr;
    }
    if (!ok) return PyErr_Format(PyExc_TypeError, "contiguous arrays of fitting sizes and dtypes are expected");
    Py_RETURN_NONE;
}

// Adds up numbers in order, in lanes, with what rounding takes from them.
class ExactSum {
    static constexpr npy_intp lanes = 8;
    double high[lanes] = {}, low[lanes] = {};

public:
    void add(const double* values, npy_intp n) {
        npy_intp i = 0;
        for (; i + lanes <= n; i += lanes)
            for (npy_intp l = 0; l < lanes; ++l) accumulate(high[l], low[l], values[i + l], 0);
        for (; i < n; ++i) accumulate(high[0], low[0], values[i], 0);
    }
    Pair total() const {
        Pair sum{0, 0};
        for (npy_intp l = 0; l < lanes; ++l) accumulate(sum.high, sum.low, high[l], low[l]);
        return {sum.high, std::isfinite(sum.high) ? sum.low : 0};
    }
};

// sum(x): of contiguous float64, as two numbers, high + low.
PyObject* exact_sum(PyObject*, PyObject* argument) {
    auto x = reinterpret_cast<PyArrayObject*>(argument);
    if (!PyArray_Check(argument) || PyArray_TYPE(x) != NPY_DOUBLE || !PyArray_ISCARRAY_RO(x))
        return PyErr_Format(PyExc_TypeError, "a contiguous array of float64 is expected");
    ExactSum sum;
    sum.add(static_cast<const double*>(PyArray_DATA(x)), PyArray_SIZE(x));
    Pair total = sum.total();
    return Py_BuildValue("dd", total.high, total.low);
}

double value_at(PyArrayObject* a, npy_intp i) {
    return PyArray_TYPE(a) == NPY_FLOAT ? static_cast<const float*>(PyArray_DATA(a))[i]
                                        : static_cast<const double*>(PyArray_DATA(a))[i];
}

void set_value(PyArrayObject* a, npy_intp i, double value) {
    if (PyArray_TYPE(a) == NPY_FLOAT) static_cast<float*>(PyArray_DATA(a))[i] = static_cast<float>(value);
    else static_cast<double*>(PyArray_DATA(a))[i] = value;
}

// The weight of all rows that count; false where an index is wrong.
bool weigh(const Losses& losses, PyArrayObject* weight, npy_intp rows, npy_intp n, double& total) {
    ExactSum sum;
    npy_intp counted = 0;
    for (npy_intp i = 0; i < rows; ++i) {
        int64_t index = losses.index[i];
        if (index == losses.ignored) continue;
        if (index < 0 || index >= n) return false;
        ++counted;
        double w = weight ? value_at(weight, index) : 0;
        if (weight) sum.add(&w, 1);
    }
    total = weight ? sum.total().high + sum.total().low : static_cast<double>(counted);
    return true;
}

// cross_entropy(logits, targets, axis, weight, ignore_index, label_smoothing, z_loss, where, reduction, return_grad, out): for
// C-contiguous arrays of one dtype, float32 or float64, along their last axis, int64 indices, and right arguments; None for
// anything else.
PyObject* direct_cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 11) return PyErr_Format(PyExc_TypeError, "11 arguments expected, not %zd", count);
    auto x = reinterpret_cast<PyArrayObject*>(args[0]), targets = reinterpret_cast<PyArrayObject*>(args[1]);
    PyObject *ignore = args[4], *reduction = args[8], *out = args[10];
    if (!PyArray_CheckExact(args[0]) || !PyArray_CheckExact(args[1]) || !is_rows(x) || !PyArray_ISCARRAY_RO(targets)) Py_RETURN_NONE;
    int ndim = PyArray_NDIM(x), overflow = 0;
    if (!kernels->rows[CROSS_ENTROPY][type_of(x)] || to_axis(args[2], x) != ndim - 1 || args[7] != Py_None) Py_RETURN_NONE;
    npy_intp n = length(x), rows = PyArray_SIZE(x) / n;

    Losses losses{};
    losses.ignored = NPY_MIN_INT64;
    const void* q = nullptr;
    if (PyArray_TYPE(targets) == NPY_INT64) {
        if (PyArray_NDIM(targets) != ndim - 1 || !PyArray_CompareLists(PyArray_DIMS(targets), PyArray_DIMS(x), ndim - 1)) Py_RETURN_NONE;
        losses.index = static_cast<const int64_t*>(PyArray_DATA(targets));
        if (PyLong_CheckExact(ignore)) losses.ignored = PyLong_AsLongLongAndOverflow(ignore, &overflow);
        else if (ignore != Py_None) Py_RETURN_NONE;
    } else {
        if (PyArray_TYPE(targets) != PyArray_TYPE(x) || !PyArray_SAMESHAPE(targets, x) || ignore != Py_None) Py_RETURN_NONE;
        q = PyArray_DATA(targets);
    }
    PyArrayObject* weight = nullptr;
    if (args[3] != Py_None) {
        weight = reinterpret_cast<PyArrayObject*>(args[3]);
        if (!PyArray_CheckExact(args[3]) || PyArray_TYPE(weight) != PyArray_TYPE(x) || !PyArray_ISCARRAY_RO(weight)) Py_RETURN_NONE;
        if (PyArray_NDIM(weight) != 1 || PyArray_SIZE(weight) != n) Py_RETURN_NONE;
        losses.weight = PyArray_DATA(weight);
    }
    if (!PyFloat_CheckExact(args[5]) || !PyFloat_CheckExact(args[6]) || !PyUnicode_Check(reduction) || overflow) Py_RETURN_NONE;
    double smoothing = PyFloat_AS_DOUBLE(args[5]);
    losses.z_loss = PyFloat_AS_DOUBLE(args[6]);
    if (!(smoothing >= 0 && smoothing <= 1) || !std::isfinite(losses.z_loss)) Py_RETURN_NONE;
    losses.kept = 1 - smoothing, losses.spread = smoothing / static_cast<double>(n);
    auto reduction_is = [=](const char* name) { return PyUnicode_CompareWithASCIIString(reduction, name) == 0; };
    bool mean = reduction_is("mean"), none = reduction_is("none"), with_grad = args[9] == Py_True;
    if (!(mean || none || reduction_is("sum")) || (!with_grad && (args[9] != Py_False || out != Py_None))) Py_RETURN_NONE;
    if (out != Py_None) {
        auto y = reinterpret_cast<PyArrayObject*>(out);
        if (!takes_directly(out, x, ndim, PyArray_DIMS(x), true) || overlap(y, targets) || (weight && overlap(y, weight))) Py_RETURN_NONE;
    }
    double total = static_cast<double>(rows);
    if (losses.index && !weigh(losses, weight, rows, n, total)) Py_RETURN_NONE;
    losses.factor = mean ? 1 / total : 1;

    npy_intp step = std::clamp<npy_intp>((1 << 22) / n, 1, 1 << 16);
    PyObject* grad = !with_grad ? nullptr : out == Py_None ? PyArray_SimpleNew(ndim, PyArray_DIMS(x), PyArray_TYPE(x)) : Py_NewRef(out);
    PyObject* result = PyArray_SimpleNew(none ? ndim - 1 : 0, PyArray_DIMS(x), PyArray_TYPE(x));
    losses.loss = static_cast<double*>(PyMem_RawMalloc(std::min(rows, step) * sizeof(double)));
    bool ok = result && (grad || !with_grad) && (losses.loss || PyErr_NoMemory());
    ExactSum sum;
    for (npy_intp from = 0; ok && from < rows; from += step) {
        auto at = [=](const void* a, npy_intp i) { return static_cast<const char*>(a) + i * PyArray_ITEMSIZE(x); };
        Losses part = losses;
        Rows some{at(PyArray_DATA(x), from * n), nullptr, std::min(step, rows - from), n};
        if (grad) some.y = const_cast<char*>(at(PyArray_DATA(reinterpret_cast<PyArrayObject*>(grad)), from * n));
        if (q) some.v = at(q, from * n);
        if (losses.index) part.index += from;
        some.losses = &part;
        ok = run(CROSS_ENTROPY, x, some);
        if (!none) sum.add(part.loss, some.count);
        for (npy_intp i = 0; none && i < some.count; ++i) set_value(reinterpret_cast<PyArrayObject*>(result), from + i, part.loss[i]);
    }
    PyMem_RawFree(losses.loss);
    if (!ok) Py_CLEAR(result);
    if (ok && !none) set_value(reinterpret_cast<PyArrayObject*>(result), 0, (sum.total().high + sum.total().low) / (mean ? total : 1));
    if (result && (!none || ndim == 1)) result = PyArray_Return(reinterpret_cast<PyArrayObject*>(result));
    if (result && grad) return Py_BuildValue("NN", result, grad);
    Py_XDECREF(grad);
    return result;
}

// The instruction sets this machine can run, the fastest first.
PyObject* available(PyObject*, PyObject*) {
    PyObject* list = PyList_New(0);
    for (const Kernels* k : compiled) {
        if (!list || !runs_here(k)) continue;
        PyObject* name = PyUnicode_FromString(k->name);
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

PyObject* chosen(PyObject*, PyObject*) { return PyUnicode_FromString(kernels->name); }

bool choose() {
    const char* forced = std::getenv("FASTSOFTMAX_ISA");
    for (const Kernels* k : compiled)
        if (runs_here(k) && (!forced || !*forced || !std::strcmp(forced, k->name))) {
            kernels = k;
            return true;
        }
    PyObject* names = available(nullptr, nullptr);
    if (names) PyErr_Format(PyExc_ImportError, "FASTSOFTMAX_ISA is '%s', but this machine and build have %R", forced, names);
    Py_XDECREF(names);
    return false;
}

PyMethodDef fast(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    fast("softmax", direct<SOFTMAX>),
    fast("log_softmax", direct<LOG_SOFTMAX>),
    fast("logsumexp", direct<LOGSUMEXP>),
    fast("softmax_vjp", direct_product<SOFTMAX_VJP>),
    fast("softmax_vjp_derivative", direct_product<SOFTMAX_VJP_DERIVATIVE>),
    fast("softmax_jacobian", direct_jacobian<SOFTMAX_JACOBIAN>),
    fast("log_softmax_vjp", direct_product<LOG_SOFTMAX_VJP>),
    fast("log_softmax_jvp", direct_product<LOG_SOFTMAX_JVP>),
    fast("log_softmax_jacobian", direct_jacobian<LOG_SOFTMAX_JACOBIAN>),
    fast("cross_entropy", direct_cross_entropy),
    fast("softmax_rows", rows<SOFTMAX, false>),
    fast("log_softmax_rows", rows<LOG_SOFTMAX, false>),
    fast("logsumexp_rows", rows<LOGSUMEXP, false>),
    fast("softmax_columns", rows<SOFTMAX, true>),
    fast("log_softmax_columns", rows<LOG_SOFTMAX, true>),
    fast("logsumexp_columns", rows<LOGSUMEXP, true>),
    fast("softmax_vjp_rows", derivative_rows<SOFTMAX_VJP>),
    fast("softmax_vjp_derivative_rows", derivative_rows<SOFTMAX_VJP_DERIVATIVE>),
    fast("softmax_jacobian_rows", derivative_rows<SOFTMAX_JACOBIAN>),
    fast("softmax_jacobian_diagonal_rows", derivative_rows<SOFTMAX_JACOBIAN_DIAGONAL>),
    fast("softmax_jacobian_eigenvalues_rows", derivative_rows<SOFTMAX_JACOBIAN_EIGENVALUES>),
    fast("log_softmax_vjp_rows", derivative_rows<LOG_SOFTMAX_VJP>),
    fast("log_softmax_jvp_rows", derivative_rows<LOG_SOFTMAX_JVP>),
    fast("log_softmax_jacobian_rows", derivative_rows<LOG_SOFTMAX_JACOBIAN>),
    fast("partition_rows", parts<PARTITION>),
    fast("softmax_part_rows", parts<SOFTMAX_PART>),
    fast("log_softmax_part_rows", parts<LOG_SOFTMAX_PART>),
    fast("cross_entropy_rows", cross_entropy),
    {"sum", exact_sum, METH_O, nullptr},
    {"available_isas", available, METH_NOARGS, nullptr},
    {"isa", chosen, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
#ifdef _OPENMP
    pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
#endif
    import_array();
    import_umath();
    return choose() ? PyModule_Create(&module) : nullptr;
}
