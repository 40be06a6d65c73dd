import { type DestinationStream, type Logger, pino } from 'pino'
import { LineWriter } from './lines.ts'

export type { Logger } from 'pino'

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const
export type LogLevel = (typeof logLevels)[number]

let lastMs = 0
let lastTime = ''

/** Many lines are written in the same millisecond. */
function timestamp(): string {
  const nowMs = Date.now()
  if (nowMs !== lastMs) {
    lastMs = nowMs
    lastTime = `,"time":"${new Date(nowMs).toISOString()}"`
  }
  return lastTime
}

/** A JSON logger, one object a line on standard output (or `destination`, for tests). */
export function createLogger(part: string, level: LogLevel, destination?: DestinationStream): Logger {
  const options = {
    level,
    base: { part },
    timestamp,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  return pino(options, destination ?? new LineWriter(process.stdout.fd))
}
