import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { takeDownOnInterrupt } from './interrupts.ts'
import { Lab } from './lab.ts'
import { isNatKind, type NatKind, natKinds } from './nat.ts'

const onTerminal = process.stderr.isTTY

function progress(step: string): void {
  process.stderr.write(onTerminal ? `\r\x1b[K\x1b[2m… ${step}\x1b[0m` : `… ${step}\n`)
}

function print(lab: Lab, json: boolean): void {
  if (json) {
    console.log(
      JSON.stringify({ name: lab.name, pods: lab.pods, services: lab.services, manifests: lab.manifests }),
    )
    return
  }
  const row = (cells: string[], widths: number[]) =>
    `  ${cells.map((c, i) => c.padEnd(widths[i] ?? 0)).join('  ')}`.trimEnd()
  console.log(`Lab ${lab.name}\n`)
  console.log(row(['POD', 'NODE', 'SITE', 'IP'], [16, 10, 6]))
  for (const p of lab.pods) console.log(row([p.name, p.node, p.site, p.ips.join('  ')], [16, 10, 6]))
  console.log(`\n${row(['SERVICE', 'CLUSTER IP', 'PORTS'], [16, 30])}`)
  for (const s of lab.services)
    console.log(row([s.name, s.clusterIPs.join('  '), s.ports.join(' ')], [16, 30]))
}

interface UpFlags {
  name?: string
  rtt?: string
  loss?: string
  ports?: string
  manifests?: string
  natA?: string
  natB?: string
  cni: boolean
  json: boolean
}

/** A number of a range, or one clear sentence. */
function numberIn(what: string, text: string | undefined, max: number, unit: string): number {
  const value = Number(text ?? 0)
  if (value >= 0 && value <= max) return value
  throw new Error(`Cannot ${what} "${text}": give ${unit} from 0 to ${max}.`)
}

function natKind(option: string, word: string | undefined): NatKind | undefined {
  if (word === undefined || isNatKind(word)) return word
  throw new Error(`Cannot make a NAT of kind "${word}": ${option} takes one of ${natKinds.join(', ')}.`)
}

function parsePorts(list: string | undefined): number[] {
  const ports = (list ?? '')
    .split(',')
    .filter((p) => p !== '')
    .map(Number)
  if (ports.every((p) => Number.isInteger(p) && p > 0 && p < 65_536)) return ports
  throw new Error(`Cannot use ports "${list}": give numbers, comma separated.`)
}

async function up(options: UpFlags): Promise<void> {
  const name = options.name ?? `lab-${process.pid}`
  using _interrupts = takeDownOnInterrupt(() => Lab.down(name))
  const natA = natKind('--nat-a', options.natA)
  const natB = natKind('--nat-b', options.natB)
  const lab = await Lab.up({
    name,
    rttMs: numberIn('delay by', options.rtt, 10_000, 'milliseconds'),
    loss: numberIn('lose', options.loss, 100, 'per cent') / 100,
    ports: parsePorts(options.ports),
    noCni: !options.cni,
    ...(natA === undefined ? {} : { natA }),
    ...(natB === undefined ? {} : { natB }),
    ...(options.manifests === undefined ? {} : { manifests: options.manifests }),
    onProgress: progress,
  })
  if (onTerminal) process.stderr.write('\r\x1b[K')
  print(lab, options.json)
  const example = lab.pods.some((p) => p.name === 'client')
    ? 'client -- telnet tcp-echo-cloud'
    : 'a -- telnet tcp-echo-b'
  if (!options.json) console.log(`\n  npm run lab -- exec ${example} 2701\n  npm run lab -- down`)
}

/** Hands over the terminal, the exit code and the signals. */
async function exec(where: string, argv: string[], { name }: { name?: string }): Promise<void> {
  const command = argv[0] === '--' ? argv.slice(1) : argv
  const child = Lab.open(name).spawn(where, command, { stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal))
  const code = await new Promise<number>((resolve) =>
    child.once('close', (exit, signal) => resolve(exit ?? (signal ? 130 : 1))),
  )
  process.exit(code)
}

async function down({ name, all }: { name?: string; all?: boolean }): Promise<void> {
  const names = all
    ? Lab.list()
    : [name ?? (Lab.list().length === 1 ? (Lab.list()[0] ?? '') : Lab.open().name)]
  for (const each of names) await Lab.down(each)
  console.log(names.length === 0 ? 'No lab is up.' : `Down: ${names.join(', ')}`)
}

const program = new Command('npm run lab --').description(
  'A lab of network namespaces: a cloud site, an edge site behind NAT, pods with real sidecars.',
)
program.enablePositionalOptions()
program
  .command('up')
  .description('makes a lab and leaves it running')
  .option('--name <name>', 'default: a new one')
  .option('--rtt <ms>', 'round-trip time of the internet segment')
  .option('--loss <percent>', 'packets that the internet segment loses')
  .option('--nat-a <kind>', `two edge sites, a and b; the NAT of a: ${natKinds.join(', ')} (default: port)`)
  .option('--nat-b <kind>', 'the NAT of b')
  .option('--no-cni', 'pods reach other nodes only through the masquerade of their own')
  .option('--ports <list>', 'more ports of the services edge and cloud, comma separated')
  .option('--manifests <folder>', 'more Kubernetes manifests for the server')
  .option('--json', 'prints one JSON object', false)
  .action(up)
program
  .command('exec <pod> <command...>')
  .description('runs a command in a pod, or on a machine such as mkmaster1; put -- before it')
  .option('--name <name>', 'which lab, where there are several')
  .passThroughOptions()
  .action(exec)
program
  .command('pods')
  .description('shows pods and services')
  .option('--name <name>', 'which lab, where there are several')
  .option('--json', 'prints one JSON object', false)
  .action(({ name, json }: { name?: string; json: boolean }) => print(Lab.open(name), json))
program
  .command('logs <pod>')
  .description('shows what a pod’s sidecar has logged (mkmaster1: the server)')
  .option('--name <name>', 'which lab, where there are several')
  .option('-f, --follow', 'goes on as more comes')
  .action((pod: string, options: { name?: string; follow?: boolean }) => {
    const lab = Lab.open(options.name)
    const log = lab.logOf(pod === 'mkmaster1' ? 'server' : lab.pod(pod).name)
    return exec('internet', ['tail', '-n', '+1', ...(options.follow ? ['-f'] : []), log], options)
  })
program
  .command('list')
  .description('names the labs that are up')
  .action(() => console.log(Lab.list().join('\n') || 'No lab is up.'))
program
  .command('down')
  .description('ends every process of a lab and removes all of it, also after a crash')
  .option('--name <name>', 'which lab, where there are several')
  .option('--all', 'every lab')
  .action(down)

try {
  await program.parseAsync()
} catch (error) {
  console.error(`${onTerminal ? '\r\x1b[K' : ''}${sentenceOf(error)}`)
  process.exit(1)
}
