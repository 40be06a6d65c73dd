import { spawn } from 'node:child_process'
import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { labError } from '../lab/processes.ts'
import { stderrLog } from './build.ts'
import { Cluster } from './cluster.ts'
import { nodes, places } from './layout.ts'

interface Named {
  name?: string
}

async function up({ name, json }: Named & { json: boolean }): Promise<void> {
  const chosen = name ?? `up-${process.pid}`
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => {
      process.stderr.write('taking it down again\n')
      // What is being made fails meanwhile, as it loses what it stands on; the exit code is this one's.
      Cluster.down(chosen).finally(() => process.exit(130))
    })
  const cluster = await Cluster.up({ name: chosen, keep: true, log: stderrLog() })
  const { folder, kubeconfig } = cluster
  if (json) {
    const nodeIPs = Object.fromEntries(nodes.map((node) => [node, cluster.nodeIP(node)]))
    console.log(JSON.stringify({ name: chosen, kubeconfig, folder, nodes: nodeIPs }))
    return
  }
  console.log(`Cluster ${chosen}\n\n  kubeconfig  ${kubeconfig}\n  logs        ${folder}/log\n`)
  console.log('  npm run cluster -- kubectl get nodes\n  npm run cluster -- down')
}

/** Hands over the terminal, the exit code and the signals. */
async function handOver(argv: readonly string[]): Promise<void> {
  const [program = '', ...args] = argv
  const child = spawn(program, args, { stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal))
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  child.once('error', reject)
  child.once('close', (code) => resolve(code ?? 130))
  process.exitCode = await promise
}

async function exec(where: string, argv: string[], { name, node }: Named & { node: boolean }): Promise<void> {
  const cluster = Cluster.open(name)
  const command = argv[0] === '--' ? argv.slice(1) : argv
  const known = node ? nodes : places
  const place = places.find((p) => p === where && (known as readonly string[]).includes(p))
  if (place === undefined)
    throw labError(`Cannot run a command in "${where}": choose one of ${known.join(', ')}.`)
  const onNode = node && place !== 'nat'
  await handOver(onNode ? cluster.commandOnNode(place, command) : cluster.commandIn(place, command))
}

async function down({ name, all }: Named & { all: boolean }): Promise<void> {
  const chosen = name ?? (Cluster.list().length === 0 ? undefined : all ? undefined : Cluster.open().name)
  const names = chosen === undefined ? await Cluster.downAll() : [chosen]
  if (chosen !== undefined) await Cluster.down(chosen)
  console.log(names.length === 0 ? 'No cluster is up.' : `Down: ${names.join(', ')}`)
}

const which = ['--name <name>', 'which cluster, where there are several'] as const
const program = new Command('npm run cluster --').description(
  'A real Kubernetes of two nodes in network namespaces: cloud, and edge behind a NAT.',
)
program.enablePositionalOptions()
program
  .command('up')
  .description('makes a cluster and leaves it running; builds Kubernetes first, where that was never done')
  .option('--name <name>', 'default: a new one')
  .option('--json', 'prints one JSON object', false)
  .action(up)
program
  .command('kubectl <args...>')
  .description('runs kubectl as the administrator')
  .option(...which)
  .passThroughOptions()
  .action((args: string[], { name }: Named) => handOver(Cluster.open(name).kubectlCommand(args)))
program
  .command('exec <place> <command...>')
  .description(`runs a command in the network of ${places.join(', ')}; put -- before it`)
  .option(...which)
  .option('--node', 'in all namespaces of a node: its files and processes too', false)
  .passThroughOptions()
  .action(exec)
program
  .command('list')
  .description('names the clusters that are up')
  .action(() => console.log(Cluster.list().join('\n') || 'No cluster is up.'))
program
  .command('down')
  .description('ends every process of a cluster and removes all of it, also after a crash')
  .option(...which)
  .option('--all', 'every cluster of this machine', false)
  .action(down)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exitCode = 1
}
