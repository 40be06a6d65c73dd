import { sentenceOf } from '#shared/errors.ts'

const signals = ['SIGINT', 'SIGTERM'] as const
const outputs = [process.stdout, process.stderr] as const

/**
 * Calls `takeDown` at the first ^C (or SIGTERM), or when whoever read what we print has left (`| head`), and then ends the
 * process; each further one only says that this is under way, so that nothing is left standing. Undo it once all is down.
 */
export function takeDownOnInterrupt(takeDown: () => Promise<unknown>): Disposable {
  let interrupted = false
  const interrupt = () => {
    if (!interrupted) void end(takeDown)
    interrupted = true
  }
  const onSignal = () => {
    process.stderr.write(
      interrupted ? '\n  still taking the lab down ...\n' : '\n  taking the lab down ...\n',
    )
    interrupt()
  }
  for (const signal of signals) process.on(signal, onSignal)
  for (const output of outputs) output.on('error', interrupt)
  return {
    [Symbol.dispose]() {
      // What was interrupted fails as it loses its lab, and comes here while `end` is at work.
      if (interrupted) return
      for (const signal of signals) process.off(signal, onSignal)
      for (const output of outputs) output.off('error', interrupt)
    },
  }
}

async function end(takeDown: () => Promise<unknown>): Promise<void> {
  let code = 130
  process.once('exit', () => {
    process.exitCode = code // whichever of the two ends first
  })
  try {
    await takeDown()
  } catch (error) {
    code = 1
    console.error(sentenceOf(error))
  }
  process.exit()
}
