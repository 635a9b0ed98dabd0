/* A faulty disk for tests, preloaded into a real process (LD_PRELOAD).
 *
 * MILLSTREAM_FAULTS names a file that is read anew at every call, so that a test switches faults while the process
 * runs. One line is one fault: KIND FRAGMENT [NUMBER]. It concerns files whose path contains FRAGMENT.
 *
 *   full FRAGMENT           no file can grow and no folder be made: ENOSPC; what has its space can be written
 *   read-only FRAGMENT      nothing can be written, made, renamed or removed: EROFS
 *   slow FRAGMENT MS        every sync takes MS milliseconds longer
 *   broken FRAGMENT         every sync fails: EIO
 *   broken-once FRAGMENT    the next sync fails: EIO; then the file of faults is removed
 *   broken-write FRAGMENT   every write fails: EIO
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Whether KIND is set for PATH; NUMBER, or 0, into *number. */
static int is_set(const char *kind, const char *path, long *number) {
    char text[4096], word[64], fragment[1024];
    const char *control = getenv("MILLSTREAM_FAULTS");
    if (!control || !path) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0) return 0;
    text[length] = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        long found = 0;
        if (sscanf(line, "%63s %1023s %ld", word, fragment, &found) < 2) continue;
        if (strcmp(word, kind) || !strstr(path, fragment)) continue;
        if (number) *number = found;
        return 1;
    }
    return 0;
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return NULL;
    path[length] = 0;
    return path;
}

/* The error of a write that ends at END, or 0. */
static int write_error(int fd, off_t end) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    struct stat found;
    if (!path || path[0] != '/') return 0;
    if (is_set("read-only", path, NULL)) return EROFS;
    if (is_set("broken-write", path, NULL)) return EIO;
    if (is_set("full", path, NULL) && !fstat(fd, &found) && S_ISREG(found.st_mode) && end > found.st_size) return ENOSPC;
    return 0;
}

static int refuse(int error) {
    errno = error;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    int error = at < 0 ? 0 : write_error(fd, at + (off_t)count);
    return error ? refuse(error) : REAL(write)(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    int error = write_error(fd, at + (off_t)count);
    return error ? refuse(error) : REAL(pwrite)(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    int error = write_error(fd, (off_t)at + (off_t)count);
    return error ? refuse(error) : REAL(pwrite64)(fd, bytes, count, at);
}

int ftruncate(int fd, off_t size) {
    int error = write_error(fd, size);
    return error ? refuse(error) : REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    int error = write_error(fd, (off_t)size);
    return error ? refuse(error) : REAL(ftruncate64)(fd, size);
}

static int sync_error(int fd) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    long milliseconds = 0;
    if (is_set("slow", path, &milliseconds)) {
        struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    if (is_set("broken-once", path, NULL)) {
        syscall(SYS_unlinkat, AT_FDCWD, getenv("MILLSTREAM_FAULTS"), 0);
        return EIO;
    }
    return is_set("broken", path, NULL) ? EIO : 0;
}

int fsync(int fd) {
    int error = sync_error(fd);
    return error ? refuse(error) : REAL(fsync)(fd);
}

int fdatasync(int fd) {
    int error = sync_error(fd);
    return error ? refuse(error) : REAL(fdatasync)(fd);
}

static int open_error(const char *path, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    return writes && is_set("read-only", path, NULL) ? EROFS : 0;
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    int error = open_error(path, flags);
    return error ? refuse(error) : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    int error = open_error(path, flags);
    return error ? refuse(error) : REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (is_set("read-only", path, NULL)) return refuse(EROFS);
    if (is_set("full", path, NULL)) return refuse(ENOSPC);
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return is_set("read-only", to, NULL) ? refuse(EROFS) : REAL(rename)(from, to);
}

int unlink(const char *path) {
    return is_set("read-only", path, NULL) ? refuse(EROFS) : REAL(unlink)(path);
}
