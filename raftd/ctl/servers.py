"""The subcommands for the cluster: members join remove promote transfer status health. Each takes a Client and options, and returns the
exit status."""

from concurrent.futures import ThreadPoolExecutor

from raftd.ctl.output import print_json, print_table
from raftd.ctl.status import DONE, NO, NOT_DONE
from raftd.errors import NotFound, RaftdError

STATUS_SECONDS = 2.0  # a server that takes longer to say how it is, is not well


def add(add_command):
    """*add_command(name, run, help, examples)* makes the parser of one."""
    add_command("members", members, "who belongs to the cluster", "raftctl members\nraftctl members -o plain")
    parser = add_command("join", join, "make a running server a member (raftd -join does it by itself)",
                         "raftctl join n4 10.0.0.4:4001\nraftctl join n4 10.0.0.4:4001 --learner")
    parser.add_argument("name")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--learner", action="store_true", help="it has all data, and no vote")
    parser = add_command("remove", remove, "remove a member", "raftctl remove n4")
    parser.add_argument("name")
    parser = add_command("promote", promote, "give a learner a vote", "raftctl promote n4")
    parser.add_argument("name")
    parser = add_command("transfer", transfer, "hand leadership over", "raftctl transfer\nraftctl transfer n2")
    parser.add_argument("name", nargs="?", help="to this voter (default: the most up to date)")
    add_command("status", status, "how far each server is", "raftctl status\nraftctl status -o json")
    add_command("health", health, "whether each server can serve; 1 if one cannot", "raftctl health && deploy")


def members(client, options):
    found = client.members()
    if any(member.get("match_index") is None for member in found):
        found = client.members()  # of the leader, whom the server that has answered knows
    if options.output == "json":
        print_json(found)
    elif options.output == "plain":
        for member in found:
            print(member["name"])
    else:
        print_table(["NAME", "ADDRESS", "ROLE", "VOTER", "MATCH INDEX"], [
            [member["name"], member["address"], member["role"], "yes" if member["voter"] else "no", member.get("match_index")]
            for member in found], rights=("MATCH INDEX",))
    return DONE


def join(client, options):
    return _join(client, options, options.address, voter=not options.learner)


def promote(client, options):
    for member in client.members():
        if member["name"] == options.name:
            return _join(client, options, member["address"], voter=True)
    raise NotFound(f"no member is named {options.name}")


def _join(client, options, address, voter):
    client.join(options.name, address, voter)
    if options.output == "json":
        print_json({"name": options.name, "address": address, "voter": voter})
    return DONE


def remove(client, options):
    client.remove(options.name)
    if options.output == "json":
        print_json({"name": options.name})
    return DONE


def transfer(client, options):
    leader = client.transfer(options.name)
    print_json(leader) if options.output == "json" else print(leader["name"])
    return DONE


def _servers(client, options):
    """(name, address) of all that are known: the members, or the endpoints if no server tells them."""
    try:
        return [(member["name"], member["address"]) for member in client.members()]
    except RaftdError:
        return [("", endpoint) for endpoint in options.endpoints]


def _of_each(client, options, ask):
    """What *ask(client, name, address)* gives for each server: all at once, so that one that says nothing keeps nobody waiting long."""
    servers, client = _servers(client, options), client.within(min(options.timeout, STATUS_SECONDS))
    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(lambda server: ask(client, *server), servers))


def _status_of(client, name, address):
    try:
        return client.status(address)
    except RaftdError as error:
        return {"name": name, "address": address, "error": str(error)}


def status(client, options):
    """Of each member, as far as it answers."""
    found = _of_each(client, options, _status_of)
    if options.output == "json":
        print_json(found)
    elif options.output == "plain":
        for server in found:
            print(server["name"], server.get("role", "unreachable"))
    else:
        print_table(["NAME", "ADDRESS", "ROLE", "TERM", "COMMITTED", "APPLIED", "VERSION", ""], [
            [server["name"], server["address"], server.get("role", "unreachable"), server.get("term"), server.get("commit_index"),
             server.get("last_applied"), server.get("version"), server.get("error")] for server in found],
            rights=("TERM", "COMMITTED", "APPLIED"))
    return DONE if any("error" not in server for server in found) else NOT_DONE


def health(client, options):
    found = _of_each(client, options, lambda client, name, address: (name, address, *client.health(address)))
    if options.output == "json":
        print_json([{"name": name, "address": address, "healthy": healthy, "detail": detail} for name, address, healthy, detail in found])
    elif options.output == "plain":
        for name, address, healthy, _ in found:
            print(name or address, "healthy" if healthy else "unhealthy")
    else:
        print_table(["NAME", "ADDRESS", "HEALTHY", "DETAIL"], [
            [name, address, "yes" if healthy else "no", detail] for name, address, healthy, detail in found])
    return DONE if all(healthy for _, _, healthy, _ in found) else NO


READING = (members, status, health)  # and change nothing
