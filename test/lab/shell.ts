import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'

export interface Output {
  code: number | null
  stdout: string
  stderr: string
}

export interface RunOptions extends Pick<SpawnOptions, 'cwd' | 'env' | 'detached'> {
  input?: string
  timeoutMs?: number
}

/** Runs a program to its end and keeps what it prints; killed at the deadline. Rejects only if it cannot start. */
export function run(
  argv: readonly string[],
  { input, timeoutMs = 90_000, ...options }: RunOptions = {},
): Promise<Output> {
  const [program = '', ...args] = argv
  const child = spawn(program, args, { ...options, stdio: ['pipe', 'pipe', 'pipe'] })
  return collect(child, input, timeoutMs)
}

/** Like `run`, but an exit code other than 0 is an error that says what was printed. */
export async function mustRun(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await run(argv, options)
  if (code === 0) return stdout
  throw new Error(`${argv.join(' ')} ended with ${code}: ${(stderr || stdout).trim()}`)
}

export function collect(child: ChildProcess, input: string | undefined, timeoutMs: number): Promise<Output> {
  const { promise, resolve, reject } = Promise.withResolvers<Output>()
  let stdout = ''
  let stderr = ''
  const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs)
  child.stdout?.setEncoding('utf8').on('data', (text) => {
    stdout += text
  })
  child.stderr?.setEncoding('utf8').on('data', (text) => {
    stderr += text
  })
  child.stdin?.on('error', () => undefined) // it may end before it has read all
  child.stdin?.end(input)
  child.once('error', reject)
  child.once('close', (code) => resolve({ code, stdout, stderr }))
  return promise.finally(() => clearTimeout(timer))
}
