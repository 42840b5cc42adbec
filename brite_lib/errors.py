"""The one error a user can cause: bad input, said in one sentence."""


class InputError(ValueError):
    """Bad input. The message is one sentence that names the parameter, file, key or row, and what to do.

    In a notebook (and so under papermill) it is shown as that sentence, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]
