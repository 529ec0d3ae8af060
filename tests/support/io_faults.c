/* Counts what a process does to files below a folder, and fails one of it.

   Loaded with LD_PRELOAD, so that it is between the program, with all its
   libraries, and the C library. It reads at each operation:

     IO_ROOT   the folder, an absolute path
     IO_LOG    a file for a line "OPERATION PATH" of each operation
     IO_FAIL   "OPERATION GLOB": the kind that fails, by the path in the folder
     IO_NTH    which of that kind, from 1
     IO_FIRED  a file that is made when it fails
     IO_HOW    the errno it fails with, once, or "kill": SIGKILL before it
               happens, but in a write, of which half happens
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int seen;

/* The absolute path of a name in an open directory, or of a descriptor. */
static int resolve(char *out, int fd, const char *name) {
  char link[64];
  ssize_t n = 0;
  if (name && name[0] == '/') {
    return snprintf(out, PATH_MAX, "%s", name) < PATH_MAX;
  }
  if (name && fd == AT_FDCWD) {
    if (!getcwd(out, PATH_MAX)) return 0;
    n = (ssize_t)strlen(out);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) return 0;
    out[n] = 0;
  }
  if (name && *name) snprintf(out + n, (size_t)(PATH_MAX - n), "/%s", name);
  return 1;
}

/* Whether this operation is to fail: 0, an errno, or -1 for a kill. */
static int fault(const char *operation, int fd, const char *name) {
  const char *root = getenv("IO_ROOT"), *at, *nth, *how;
  char path[PATH_MAX], line[PATH_MAX + 32];
  int saved = errno;
  size_t n;
  if (!root || !resolve(path, fd, name)) goto pass;
  n = strlen(root);
  if (strncmp(path, root, n) || (path[n] != '/' && path[n] != 0)) goto pass;
  snprintf(line, sizeof line, "%s %s", operation, path[n] ? path + n + 1 : ".");
  at = getenv("IO_LOG");
  if (at) {
    long file = syscall(SYS_openat, AT_FDCWD, at,
                        O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (file >= 0) {
      size_t m = strlen(line);
      line[m] = '\n';
      syscall(SYS_write, file, line, m + 1);
      syscall(SYS_close, file);
      line[m] = 0;
    }
  }
  at = getenv("IO_FAIL"), nth = getenv("IO_NTH"), how = getenv("IO_HOW");
  if (!at || !nth || !how || fnmatch(at, line, 0)) goto pass;
  if (atomic_fetch_add(&seen, 1) + 1 != atoi(nth)) goto pass;
  at = getenv("IO_FIRED");
  if (at) {
    long file = syscall(SYS_openat, AT_FDCWD, at, O_WRONLY | O_CREAT, 0666);
    if (file >= 0) syscall(SYS_close, file);
  }
  return strcmp(how, "kill") ? atoi(how) : -1;
pass:
  errno = saved;
  return 0;
}

static void end(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

#define REAL(type, name) \
  static type (*real)();  \
  if (!real) real = (type (*)())dlsym(RTLD_NEXT, #name)

#define CHECK(operation, fd, path)             \
  do {                                         \
    int code = fault(operation, fd, path);     \
    if (code < 0) end();                       \
    if (code > 0) { errno = code; return -1; } \
  } while (0)

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                          \
  int name(const char *path, int flags, ...) {              \
    va_list rest;                                           \
    va_start(rest, flags);                                  \
    mode_t mode = va_arg(rest, mode_t);                     \
    va_end(rest);                                           \
    REAL(int, name);                                        \
    CHECK(WRITES(flags) ? "create" : "open", AT_FDCWD, path); \
    return real(path, flags, mode);                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                      \
  int name(int fd, const char *path, int flags, ...) {    \
    va_list rest;                                         \
    va_start(rest, flags);                                \
    mode_t mode = va_arg(rest, mode_t);                   \
    va_end(rest);                                         \
    REAL(int, name);                                      \
    CHECK(WRITES(flags) ? "create" : "open", fd, path);   \
    return real(fd, path, flags, mode);                   \
  }
OPENAT(openat)
OPENAT(openat64)

#define WRITE(name, parameters, arguments, halves)  \
  ssize_t name parameters {                         \
    REAL(ssize_t, name);                            \
    int code = fault("write", fd, NULL);            \
    if (code < 0) { halves; end(); }                \
    if (code > 0) { errno = code; return -1; }      \
    return real arguments;                          \
  }
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size),
      real(fd, data, size / 2))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at),
      (fd, data, size, at), real(fd, data, size / 2, at))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at),
      (fd, data, size, at), real(fd, data, size / 2, at))
WRITE(writev, (int fd, const struct iovec *parts, int count),
      (fd, parts, count), real(fd, parts, count / 2))
WRITE(pwritev, (int fd, const struct iovec *parts, int count, off_t at),
      (fd, parts, count, at), real(fd, parts, count / 2, at))

#define READ(name, parameters, arguments) \
  ssize_t name parameters {               \
    REAL(ssize_t, name);                  \
    CHECK("read", fd, NULL);              \
    return real arguments;                \
  }
READ(read, (int fd, void *data, size_t size), (fd, data, size))
READ(pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
READ(pread64, (int fd, void *data, size_t size, off64_t at),
     (fd, data, size, at))

#define OTHER(name, operation, parameters, arguments, fd, path) \
  int name parameters {                                         \
    REAL(int, name);                                            \
    CHECK(operation, fd, path);                                 \
    return real arguments;                                      \
  }
OTHER(fsync, "sync", (int fd), (fd), fd, NULL)
OTHER(fdatasync, "sync", (int fd), (fd), fd, NULL)
OTHER(ftruncate, "truncate", (int fd, off_t size), (fd, size), fd, NULL)
OTHER(ftruncate64, "truncate", (int fd, off64_t size), (fd, size), fd, NULL)
OTHER(unlink, "unlink", (const char *path), (path), AT_FDCWD, path)
OTHER(unlinkat, "unlink", (int fd, const char *path, int flags),
      (fd, path, flags), fd, path)
OTHER(rmdir, "rmdir", (const char *path), (path), AT_FDCWD, path)
OTHER(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), AT_FDCWD,
      path)
OTHER(mkdirat, "mkdir", (int fd, const char *path, mode_t mode),
      (fd, path, mode), fd, path)
OTHER(link, "link", (const char *path, const char *to), (path, to), AT_FDCWD,
      to)
OTHER(rename, "rename", (const char *path, const char *to), (path, to),
      AT_FDCWD, to)
OTHER(renameat, "rename", (int fd, const char *path, int at, const char *to),
      (fd, path, at, to), at, to)
OTHER(renameat2, "rename",
      (int fd, const char *path, int at, const char *to, unsigned flags),
      (fd, path, at, to, flags), at, to)
