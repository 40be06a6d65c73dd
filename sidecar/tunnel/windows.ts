/**
 * HTTP/2 flow control, in bytes: what slow readers may make us hold. A megabyte gives 200 Mbit/s at 40 ms (Node's
 * default 13), and what could use more moves to a side connection, where the kernel's windows count. The session's
 * window must exceed a stream's: equal ones deadlock when one slow stream holds them all.
 */
export const streamWindow = 1024 * 1024
export const sessionWindow = 6 * 1024 * 1024

/** Streams that one session may carry at once, as in HBONE; the pool opens another session beyond it. */
export const maxStreams = 100

/** In MB; must exceed the session window, or Node refuses streams with ENHANCE_YOUR_CALM. */
export const maxSessionMemory = 64
