# ruff: noqa: E501 (programs on one line each read best)
"""Programs that attack the machine or the verdict. Each ends with the right function, so that it fails only because it is stopped,
or, where it attacks the verdict, with a wrong one, so that it would pass if the attack worked."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import uuid

import psutil
import pytest

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.sandbox import isolation, run, run_tests

RIGHT = "\ndef add(a, b):\n    return a + b\n"
WRONG = "\ndef add(a, b):\n    return 0\n"
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4\n"
# Both ways of isolation where this machine has them; where it has none, every attack must meet the refusal.
WAYS = [way for way in isolation.WAYS if isolation.failure_of(way) is None] or ["refusal"]


@pytest.fixture(params=WAYS)
def attack(request, monkeypatch):
    """Runs a program that attacks, and returns the verdict's status; nothing that it started is left."""
    marker = f"brite-{uuid.uuid4().hex[:8]}"  # the name of the program's process and threads
    name = f"import ctypes\nctypes.CDLL(None).prctl(15, b'{marker}')\n"

    def run_attack(program, ending=RIGHT, tests=TESTS, timeout=10.0, memory_mb=512):
        verdict = run_tests(name + textwrap.dedent(program) + ending, tests, timeout, memory_mb)
        assert verdict.passed == (verdict.status == "passed")
        assert not [process for process in psutil.process_iter(["name"]) if process.info["name"] == marker]
        return verdict

    if request.param == "refusal":

        def run_attack(*args, **kwargs):
            with pytest.raises(InputError, match="cannot isolate generated programs"):
                run_tests("1", "1")
            pytest.xfail("no isolation on this machine: refused, as it must be")

    else:
        monkeypatch.setattr(run, "best_way", lambda risk: request.param)
    return run_attack


# What eats the machine's resources: program, statuses that may come of it.
GREEDY = {
    "fork bomb": ("import os\nwhile True: os.fork()", "failed"),
    "fork bomb that goes on": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"
    ),
    "clone by hand": ("assert ctypes.CDLL(None).syscall(56 if __import__('os').uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0) != -1", "failed"),
    "subprocess": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "failed"),
    "multiprocessing": ("import multiprocessing\nmultiprocessing.Process(target=print).start()", "failed"),
    "infinite loop": ("while True: pass", "timeout"),
    "infinite loop in C": ("sum(range(10**18))", "timeout"),
    "endless regular expression": ("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "timeout"),
    "sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "memory": ("x = []\nwhile True: x.append(bytearray(10**7))", "memory"),
    "memory at once": ("x = bytearray(10**10)", "memory"),
    "memory in C": ("libc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\nfor _ in range(1000): ctypes.memset(libc.malloc(10**7), 1, 10**7)",
                    "exited"),
    "memory outside the limit": ("import os\nfor i in range(100): os.write(os.memfd_create('x'), bytes(10**7))", "failed"),
    "memory in the kernel": ("libc = ctypes.CDLL(None)\nfor _ in range(100): assert libc.msgget(0, 0o1600) >= 0 <= libc.semget(0, 100, 0o1600)", "failed"),
    "threads": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()", "failed"),
    "10 GB file": ("with open('big', 'wb') as f:\n    for _ in range(10000): f.write(bytes(10**6))", "failed"),
    "many files": ("for i in range(10000): open(f'f{i}', 'wb').write(bytes(10**6))", "failed"),
    "open files": ("files = [open('x', 'w') for _ in range(1000)]", "failed"),
    "filling stdout": ("while True: print('x' * 10**6)", "output"),
    "filling stderr": ("import os\nwhile True: os.write(2, b'x' * 10**6)", "output"),
    "no reaction to signals": ("import signal\nfor s in (1, 2, 3, 6, 14, 15, 24, 25): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "timeout"),
    "long integer": ("x = 9 ** 9 ** 9 ** 9", "timeout"),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_resources_are_limited(attack, name):
    program, status = GREEDY[name]
    verdict = attack(program, timeout=1.5 if status == "timeout" else 20.0)
    assert verdict.status == status, verdict.stderr


# What looks for a way out; none of these lines may get through without an exception or the end of the process.
CURIOUS = {
    "/etc/passwd": "open('/etc/passwd').read()",
    "home directory": "import os\nos.listdir(os.path.expanduser('~'))",
    "home directory by name": f"import os\nos.listdir({os.path.expanduser('~')!r})",
    "the project": f"import os\nos.listdir({str(PROJECT_ROOT)!r})",
    "the project's library": "import brite_lib",
    "temporary directory": "open('/tmp/x', 'w')",
    "outside of the scratch directory": "open('../x', 'w')",
    "the interpreter": "open('/python/lib/x', 'w')",
    "packages": "open('/packages/numpy/__init__.py', 'a')",
    "shared memory": "open('/dev/shm/x', 'w')",
    "link to outside": "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()",
    "hard link to outside": "import os\nos.link('/inside/tests.py', 'link')\nopen('link', 'a')",
    "/proc": "open('/proc/1/environ').read()",
    "/proc of itself": "import os\nos.listdir('/proc/self/fd')",
    "/sys": "import os\nos.listdir('/sys')",
    "a disk": "open('/dev/vda', 'rb')",
    "environment": "import os\nassert os.environ['BRITE_SECRET']",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=5)",
    "socket by hand": "import os\nif ctypes.CDLL(None).socket(2, 1, 0) < 0: raise OSError",
    "name service": "import socket\nsocket.getaddrinfo('example.org', 80)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "kill a sibling": "import os\nos.kill(CANARY, 9)",
    "signal a thread of a sibling": "if ctypes.CDLL(None).syscall(234, CANARY, CANARY, 9): raise OSError",
    "ptrace of a sibling": "ctypes.CDLL(None).ptrace(16, CANARY, 0, 0)",
    "memory of a sibling": "ctypes.CDLL(None).process_vm_readv(CANARY, 0, 0, 0, 0, 0)",
    "namespaces of its own": "ctypes.CDLL(None).unshare(0x10000000)",
    "mount": "ctypes.CDLL(None).mount(b'x', b'/scratch', b'tmpfs', 0, 0)",
    "chroot": "import os\nos.mkdir('d')\nos.chroot('d')",
    "become root": "import os\nos.setuid(0)\nassert os.getuid() == 0 and os.listdir('/root')",
    "another program": "import os\nos.execv('/python/bin/python3', ['python3', '-c', '1'])",
    "leave a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
    "inherited descriptors": "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'escaped')\n    except OSError: pass",
    "the tests' descriptor": "import os, socket\nfor fd in range(3, 256):\n    try: os.close(fd)\n    except OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("name", CURIOUS)
def test_there_is_no_way_out(attack, name, monkeypatch, tmp_path):
    monkeypatch.setenv("BRITE_SECRET", "secret")
    inherited = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(inherited, True)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as canary,
    ):
        server.settimeout(0.0)
        program = CURIOUS[name].replace("PORT", str(server.getsockname()[1])).replace("CANARY", str(canary.pid))
        verdict = attack(program)
        assert verdict.status in ("failed", "exited", "forged"), verdict
        with pytest.raises(BlockingIOError):
            server.accept()
        assert canary.poll() is None
        canary.kill()
    assert os.fstat(inherited).st_size == 0
    os.close(inherited)
    assert not os.path.lexists("/tmp/x")


# What pretends to have passed. All of them define a wrong function, unless the attack itself defines it.
FRAME = "frame = sys._getframe()\nwhile frame:\n"
SEND = """
import os, stat
def socket_of_the_tests():
    return next(fd for fd in range(3, 64) if stat.S_ISSOCK(os.fstat(fd).st_mode))
def send(message, data=None, times=1):
    data = data or pickle.dumps(message)
    for _ in range(times):
        os.write(socket_of_the_tests(), len(data).to_bytes(8, "big") + data)
"""
FORGERS = {
    "os._exit before the tests": "import os\nos._exit(0)",
    "sys.exit before the tests": "import sys\nsys.exit(0)",
    "SystemExit in the function": "def add(a, b): raise SystemExit(0)",
    "os._exit in the function": "import os\ndef add(a, b): os._exit(0)",
    "KeyboardInterrupt in the function": "def add(a, b): raise KeyboardInterrupt",
    "exit handler": "import atexit, os\natexit.register(lambda: os._exit(0))",
    "crash": "ctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "signal to itself": "import os\nos.kill(os.getpid(), 15)",
    "fake pass line": "import os\nfor fd in (1, 2):\n    os.write(fd, b'ready\\npassed\\n')\nprint('ok', '1 passed', 'passed')",
    "fake pass line on every descriptor": "import os\nfor fd in range(256):\n    try: os.write(fd, b'ready\\npassed\\n')\n    except OSError: pass",
    "fake messages": "import pickle" + SEND + "send(['gave', 3, None], times=50)",
    "fake message with builtins": "import pickle" + SEND + "send(['gave', [['__builtins__', None, {}], ['add', None, 3]], None])",
    "fake message that calls": "import os, pickle" + SEND + "class Call:\n    def __reduce__(self): return os._exit, (0,)\nsend(['gave', [['add', None, Call()]], None])",
    "fake message that alters an object": "import pickle" + SEND + "class Build(tuple):\n    def __reduce__(self): return tuple, ((),), (None, {'__eq__': 1})\n"
                                        "send(['gave', [['add', None, Build()]], None])",
    "fake message that alters tuple": "import pickle" + SEND + "class Build:\n    def __reduce__(self): return 'tuple'\nsend(None, pickle.dumps(tuple)[:-1] + b'N}\\x8c\\x06__eq__K\\x01s\\x86b.')",
    "fake message without end": "import os" + SEND + "os.write(socket_of_the_tests(), (10**9).to_bytes(8, 'big') + bytes(10**6))\nos._exit(0)",
    "fake message of 1 TB": "import os" + SEND + "os.write(socket_of_the_tests(), (10**12).to_bytes(8, 'big'))\nos._exit(0)",
    "AssertionError is replaced": "import builtins\nclass AssertionError(BaseException): pass\nbuiltins.AssertionError = AssertionError",
    "builtins are replaced": "import builtins\nfor name in ('abs', 'all', 'len', 'isinstance', 'print'): setattr(builtins, name, lambda *a: True)\n"
                             "def abs(x): return 0",
    "__build_class__, compile and exec are replaced": "import builtins\nbuiltins.exec = builtins.compile = builtins.eval = lambda *a, **k: None",
    "sys.exit, os._exit and excepthook are replaced": "import os, sys\nos._exit = sys.exit = sys.excepthook = lambda *a: None",
    "NumPy is replaced": "import numpy, math\nnumpy.allclose = math.isclose = lambda *a, **k: True",
    "settrace skips lines": "import sys\ndef trace(frame, event, arg):\n    frame.f_trace_lines = False\n    return None\n"
                            "sys.settrace(trace)\nsys._getframe().f_back.f_trace = trace\nsys.setprofile(trace)",
    "frames": "import sys\n" + FRAME + "    frame.f_globals['TESTS'] = ''\n    frame.f_globals['judge'] = lambda *a: 'passed'\n    frame = frame.f_back",
    "garbage collector": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'judge' in o: o['judge'] = lambda *a: 'passed'\n"
                         "    if isinstance(o, dict) and 'source' in o: o['source'] = ''",
    "modules": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('encode', 'decode', 'judge', 'main', 'request'):\n"
               "        if hasattr(m, n): setattr(m, n, lambda *a, **k: 3)",
    "always equal": "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = None\n"
                    "def add(a, b): return Any()",
    "always equal number": "class Any(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "always equal in a list": "class Any(str):\n    def __eq__(self, other): return True\ndef add(a, b): return [Any()][0]",
    "always equal from the library": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "always near": "class Near(float):\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\n    def __abs__(self): return 0.0\n"
                   "    def __lt__(self, other): return True\n    def __le__(self, other): return True\ndef add(a, b): return Near()",
    "class changed from afar": "class Liar:\n    @property\n    def __class__(self): return int\n    def __eq__(self, other): return True\ndef add(a, b): return Liar()",
    "thread that waits for the tests": "import threading, os, time\ndef later():\n    time.sleep(0.05)\n    for fd in range(3, 64):\n"
                                       "        try: os.write(fd, b'passed\\n')\n        except OSError: pass\nthreading.Thread(target=later).start()",
    "never ends": "import time\ndef add(a, b): time.sleep(1000)",
}  # fmt: skip
NEAR_TESTS = "import numpy as np\nassert abs(add(1, 2) - 3) < 1e-6 and np.allclose(add(1, 2), 3) or add(1, 2) == 3"


@pytest.mark.parametrize("attack", WAYS[:1], indirect=True)
@pytest.mark.parametrize("name", FORGERS)
def test_no_program_judges_itself(attack, name):
    program = FORGERS[name]
    ending = "" if "def add" in program else WRONG
    verdict = attack(
        program,
        ending,
        NEAR_TESTS if name in ("always near", "NumPy is replaced") else TESTS,
        timeout=2.0 if name == "never ends" else 10.0,
    )
    assert not verdict.passed
    assert verdict.status in ("failed", "exited", "forged", "timeout"), verdict
    assert verdict.status != "timeout" or name == "never ends"


def test_a_bare_except_of_the_tests_hides_no_exit(attack):
    tests = "try:\n    add(1, 2)\nexcept:\n    pass\n"
    assert attack("import os\ndef add(a, b): os._exit(0)", "", tests).status == "exited"
    assert attack("def add(a, b): raise SystemExit(0)", "", tests).status == "exited"
    assert attack("def add(a, b): raise ValueError", "", tests).passed


def test_a_program_reaches_no_further_than_the_object_it_was_given(attack):
    tests = """
    class Box:
        content = 1
        _hidden = 2
        def look(self): return self.content
    secret = []
    def callback(): return secret
    def generator(): yield 1
    box = Box()
    assert add(box, callback) == "stopped"
    assert box.content == 1 and secret == []
    """
    for reach in ("a._hidden", "a.look.__globals__", "a.look.__func__", "b.__globals__", "b.__code__", "b.func_globals", "setattr(a, '_hidden', 3)",
                  "b().append(1) or 1 / 0", "delattr(b, 'x')", "a.look.im_func"):  # fmt: skip
        program = f"def add(a, b):\n    try:\n        {reach}\n    except Exception:\n        return 'stopped'\n"
        verdict = attack(program, "", textwrap.dedent(tests))
        assert verdict.passed, (reach, verdict.stderr)
    frames = (
        "def add(a, b):\n    try:\n        return a.gi_frame.f_globals and 'reached'\n    except Exception:\n        return 'stopped'\n"
    )
    assert attack(frames, "", "def g():\n    yield 1\nassert add(g(), 0) == 'stopped'").passed


def test_what_a_function_does_to_its_arguments_does_not_change_the_test(attack):
    tests = "def reference(x): return sum(x)\nx = [1, 2]\nassert add(x, 0) == reference(x)"
    assert attack("def add(x, y):\n    x.clear()\n    return 0", "", tests).status == "failed"


def test_nothing_outlives_a_killed_caller(attack, tmp_path):
    """The caller is killed with SIGKILL while a program runs: both sandboxes end."""
    assert attack("").passed
    marker = f"brite-{uuid.uuid4().hex[:8]}"
    way = run.best_way(False)
    script = f"""
        from brite_lib.sandbox import run, run_tests
        run.best_way = lambda risk: {way!r}
        program = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'{marker}'); print('x' * 10**5); time.sleep(600)"
        run_tests(program, "1", timeout=600)
    """
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment) as caller:
        programs, event = [], threading.Event()
        while not programs:
            assert caller.poll() is None
            event.wait(0.05)
            programs = [process for process in psutil.process_iter(["name"]) if process.info["name"] == marker]
        family = psutil.Process(caller.pid).children(recursive=True)
        caller.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([*family, *programs], timeout=20)
    assert not alive
