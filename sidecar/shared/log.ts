import { type DestinationStream, type Logger, pino } from 'pino'
import { LineWriter } from './lines.ts'

export type { Logger } from 'pino'

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const
export type LogLevel = (typeof logLevels)[number]

/** A JSON logger, one object a line on standard output (or `destination`, for tests). */
export function createLogger(part: string, level: LogLevel, destination?: DestinationStream): Logger {
  const options = {
    level,
    base: { part },
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  return pino(options, destination ?? new LineWriter(process.stdout.fd))
}
