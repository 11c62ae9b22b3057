/* An awaitable whose first step usually is its last, without a coroutine object and, where Python allows it,
 * without an exception for the result.
 *
 * Source: CPython's PyAsyncMethods.am_send (3.10), which `await` prefers in 3.11 and Tasks use; 3.12 and later
 * call tp_iternext for `await`.
 */
#ifndef SHMB_AWAITABLE_H
#define SHMB_AWAITABLE_H

#include <Python.h>

/* One step of `self`: a new reference and *done = 1 for its result, 0 for what it yields; NULL: it raised. */
typedef PyObject *(*shmb_step_fn)(PyObject *self, int *done);

static shmb_step_fn shmb_awaitable_step;

static PyObject *shmb_awaitable_next(PyObject *self)
{
    int done = 0;
    PyObject *result = shmb_awaitable_step(self, &done);
    if (!result || !done)
        return result;
    /* Neither a tuple nor an exception (it is a receipt), so StopIteration(result) comes of it. */
    PyErr_SetObject(PyExc_StopIteration, result);
    Py_DECREF(result);
    return NULL;
}
static PySendResult shmb_awaitable_send(PyObject *self, PyObject *value, PyObject **result)
{
    int done = 0;
    (void)value; /* a Task sends None */
    *result = shmb_awaitable_step(self, &done);
    return !*result ? PYGEN_ERROR : done ? PYGEN_RETURN : PYGEN_NEXT;
}
/* Has `type`, which defines __await__ and __next__, take its steps by `step`. */
static void shmb_awaitable_install(PyObject *type, shmb_step_fn step)
{
    PyTypeObject *t = (PyTypeObject *)type;
    shmb_awaitable_step = step;
    t->tp_iternext = shmb_awaitable_next;
    t->tp_as_async->am_send = shmb_awaitable_send;
}

#endif
