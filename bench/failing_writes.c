/* Preloaded into a process by failing_writes.py: makes writes below a folder fail, as on a full or read-only disk.

   FAILING_UNDER  the folder
   FAILING_AT     the number of the change that fails, from 1 on; 0 counts the changes only
   FAILING_ON     1 if all changes after it fail too
   FAILING_WITH   the error: 28 for a full disk, 30 for a read-only one, where open files stay writable
   FAILING_LOG    the log file: number, kind and path of every change */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define READ_ONLY 30

static int counted = 0;

static long number(const char *name) {
  const char *value = getenv(name);
  return value ? atol(value) : 0;
}

/* Return whether this change must fail: it is below the folder and has the chosen number. */
static int fails(const char *what, const char *path, int is_open) {
  const char *under = getenv("FAILING_UNDER");
  char whole[PATH_MAX];
  if (!under || !path || (is_open && number("FAILING_WITH") == READ_ONLY)) return 0;
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here) || snprintf(whole, sizeof whole, "%s/%s", here, path) >= PATH_MAX) return 0;
    path = whole;
  }
  size_t length_of_under = strlen(under);
  if (strncmp(path, under, length_of_under) || (path[length_of_under] && path[length_of_under] != '/')) return 0;
  long turn = __sync_add_and_fetch(&counted, 1), at = number("FAILING_AT");
  int now = at && (turn == at || (number("FAILING_ON") && turn > at));
  const char *log = getenv("FAILING_LOG");
  if (log) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s%s %s\n", turn, now ? "FAILS " : "", what, path + strlen(under));
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    syscall(SYS_write, file, line, length < (int)sizeof line ? length : (int)sizeof line);
    syscall(SYS_close, file);
  }
  if (now) errno = (int)number("FAILING_WITH");
  return now;
}

static const char *path_of(int file, char *place) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, place, PATH_MAX - 1);
  if (length < 0) return NULL;
  place[length] = 0;
  return place;
}

static const char *path_at(int folder, const char *path, char *place) {
  if (!path || path[0] == '/' || folder == AT_FDCWD) return path;
  char around[PATH_MAX];
  if (!path_of(folder, around) || snprintf(place, PATH_MAX, "%s/%s", around, path) >= PATH_MAX) return NULL;
  return place;
}

#define REAL(name) \
  static __typeof__(name) *real = NULL; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return WRITES(flags) && fails("open", path, 0) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    char place[PATH_MAX]; \
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return WRITES(flags) && fails("open", path_at(folder, path, place), 0) ? -1 : real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

/* Changes of an open file. */
#define ON_FILE(result, name, what, failed, arguments, values) \
  result name arguments { \
    REAL(name); \
    char place[PATH_MAX]; \
    return fails(what, path_of(file, place), 1) ? (failed) : real values; \
  }
ON_FILE(ssize_t, write, "write", -1, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, writev, "write", -1, (int file, const struct iovec *data, int parts), (file, data, parts))
ON_FILE(ssize_t, pwrite, "write", -1, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, "write", -1, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(int, posix_fallocate, "allocate", errno, (int file, off_t at, off_t size), (file, at, size))
ON_FILE(int, posix_fallocate64, "allocate", errno, (int file, off64_t at, off64_t size), (file, at, size))
ON_FILE(int, fallocate, "allocate", -1, (int file, int mode, off_t at, off_t size), (file, mode, at, size))
ON_FILE(int, fallocate64, "allocate", -1, (int file, int mode, off64_t at, off64_t size), (file, mode, at, size))
ON_FILE(int, ftruncate, "truncate", -1, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, "truncate", -1, (int file, off64_t size), (file, size))
ON_FILE(int, fsync, "sync", -1, (int file), (file))

/* Changes of a name. A full disk still allows deletion. */
#define REMOVES (number("FAILING_WITH") == READ_ONLY)

int rename(const char *from, const char *to) {
  REAL(rename);
  return fails("rename", to, 0) ? -1 : real(from, to);
}
int renameat(int one, const char *from, int other, const char *to) {
  REAL(renameat);
  char place[PATH_MAX];
  return fails("rename", path_at(other, to, place), 0) ? -1 : real(one, from, other, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return fails("mkdir", path, 0) ? -1 : real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat);
  char place[PATH_MAX];
  return fails("mkdir", path_at(folder, path, place), 0) ? -1 : real(folder, path, mode);
}
int unlink(const char *path) {
  REAL(unlink);
  return REMOVES && fails("unlink", path, 0) ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat);
  char place[PATH_MAX];
  return REMOVES && fails("unlink", path_at(folder, path, place), 0) ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return REMOVES && fails("rmdir", path, 0) ? -1 : real(path);
}
