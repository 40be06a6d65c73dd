/**
 * HTTP/2 flow control, in bytes. Node's defaults give 13 Mbit/s at 40 ms; these give about 740. The session's
 * window must exceed a stream's: equal ones deadlock when one slow stream holds them all.
 */
export const streamWindow = 4 * 1024 * 1024
export const sessionWindow = 16 * 1024 * 1024

/** Streams that one session may carry at once, as in HBONE; the pool opens another session beyond it. */
export const maxStreams = 100

/** In MB; must exceed the session window, or Node refuses streams with ENHANCE_YOUR_CALM. */
export const maxSessionMemory = 64
