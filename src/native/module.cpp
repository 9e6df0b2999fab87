// The module fastsoftmax._native: checks what Python hands over and calls the kernels.
#define PY_SSIZE_T_CLEAN
#include "loss_calls.h"
#include "order.h"
#ifdef _OPENMP
#include <pthread.h>
#endif

namespace {

// function(x, axis, where, temperature, out, dtype): for arrays of floats along one axis, or several that lie as one, and no more than
// moderate temperatures; None for anything else, which is not looked at further.
template <Function function>
PyObject* direct(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 6) return PyErr_Format(PyExc_TypeError, "6 arguments expected, not %zd", count);
    PyObject *where = args[2], *temperature = args[3], *out = args[4], *dtype = args[5];
    auto x = reinterpret_cast<PyArrayObject*>(args[0]);
    if (!PyArray_CheckExact(args[0]) || !is_view(x) || dtype != Py_None) Py_RETURN_NONE;
    double t = to_temperature(temperature);
    Axes axes = to_axes(args[1], x);
    if (!(t > 0x1p-60 && t < 0x1p60) || axes.first < 0) Py_RETURN_NONE;
    int axis = axes.first;
    npy_intp n = PyArray_DIM(x, axis);
    Rows rows{nullptr, nullptr, PyArray_SIZE(x) / n, n, &t};
    Owned keep{where == Py_None ? nullptr : mask_of(where, x)};
    if (where != Py_None && !keep.array) return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
    if (axes.end > axis + 1) return along_several<function>(x, axes, rows, out, keep.array);
    if constexpr (function == LOGSUMEXP) return reduced<function>(x, axis, rows, out, keep.array);
    else return mapped<function>(&x, axis, rows, out, keep.array);
}

// function(p, vectors..., axis, out): likewise.
template <Function function>
PyObject* direct_product(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr int inputs = 1 + vectors(function);
    if (count != inputs + 2) return PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", inputs + 2, count);
    for (int i = 0; i < inputs; ++i)
        if (!PyArray_CheckExact(args[i])) Py_RETURN_NONE;
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    PyArrayObject* p = a[0];
    if (!is_view(p)) Py_RETURN_NONE;
    int axis = to_axis(args[inputs], p);
    if (axis < 0) Py_RETURN_NONE;
    for (int i = 1; i < inputs; ++i)
        if (PyArray_TYPE(a[i]) != PyArray_TYPE(p) || !is_view(a[i]) || !PyArray_SAMESHAPE(p, a[i])) Py_RETURN_NONE;
    npy_intp n = PyArray_DIM(p, axis);
    return mapped<function>(a, axis, {nullptr, nullptr, PyArray_SIZE(p) / n, n}, args[inputs + 1]);
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
    PyObject* y = args[2] == Py_None ? PyArray_SimpleNew(ndim + 1, dims, PyArray_TYPE(p)) : Py_NewRef(args[2]);
    if (!y) return nullptr;
    Rows rows{PyArray_DATA(p), PyArray_DATA(reinterpret_cast<PyArrayObject*>(y)), PyArray_SIZE(p) / n, n};
    if (!run(function, p, rows)) Py_CLEAR(y);
    return y;
}

// Whether a is C-contiguous, writeable, of x's dtype, and has so many elements.
bool takes(PyArrayObject* a, PyArrayObject* x, npy_intp size) {
    return PyArray_ISCARRAY(a) && PyArray_TYPE(a) == PyArray_TYPE(x) && PyArray_SIZE(a) == size;
}

// function_rows(x, y, temperature): all arrays C-contiguous, x and y of one dtype; temperature float64, with one number or
// one a row. function_columns, likewise: along the middle axis of x, of three.
template <Function function, bool columns>
PyObject* rows(PyObject*, PyObject* const* args, Py_ssize_t count) {
    bool ok = count == 3 && PyArray_Check(args[0]) && PyArray_Check(args[1]) && PyArray_Check(args[2]);
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    ok = ok && is_rows(a[0]) && (!columns || PyArray_NDIM(a[0]) == 3);
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

// function_rows(p, y, vectors...): all arrays C-contiguous, of one dtype; Jacobians: float32 or float64.
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
    fast("narrow", narrow_array),
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
