# pragma version ^0.4.0
"""
A chequebook: payers deposit a token, and sign vouchers that payees redeem.

A voucher is cumulative: it says what a payer owes a payee in all, so the newest is enough, and one
that was redeemed already pays nothing. Signatures are EIP-712, over this contract and this chain.
A payer that wants its deposit back gives a day's notice, in which payees can still redeem.

What it rests on: the chain, the token, and secp256k1. What it does not give: a payer's deposit can
be spent on other payees first. For plain ERC-20 tokens, which move what they are told to.
Unaudited.
"""

interface Token:
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def transfer(to: address, amount: uint256) -> bool: nonpayable

event Funded:
    payer: indexed(address)
    amount: uint256

event Redeemed:
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256

event Leaving:
    payer: indexed(address)
    at: uint256

NOTICE_S: constant(uint256) = 86400
DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(address payer,address payee,uint256 total,bytes32 statement)")

token: public(immutable(address))
deposit_of: public(HashMap[address, uint256])
leaves_at: public(HashMap[address, uint256])
paid: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__(its_token: address):
    token = its_token


@external
@nonreentrant
def fund(amount: uint256):
    self.deposit_of[msg.sender] += amount
    log Funded(payer=msg.sender, amount=amount)
    assert extcall Token(token).transferFrom(msg.sender, self, amount, default_return_value=True)


@external
@nonreentrant
def redeem(payer: address, payee: address, total: uint256, statement: bytes32, v: uint8, r: bytes32, s: bytes32) -> uint256:
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, keccak256("p2pinfer"), keccak256("1"), chain.id, self))
    voucher: bytes32 = keccak256(abi_encode(VOUCHER_TYPE, payer, payee, total, statement))
    signer: address = ecrecover(keccak256(concat(b"\x19\x01", domain, voucher)), v, r, s)
    assert signer != empty(address) and signer == payer, "not signed by the payer"
    before: uint256 = self.paid[payer][payee]
    if total <= before:
        return 0
    due: uint256 = min(total - before, self.deposit_of[payer])
    self.paid[payer][payee] = before + due
    self.deposit_of[payer] -= due
    log Redeemed(payer=payer, payee=payee, amount=due)
    assert extcall Token(token).transfer(payee, due, default_return_value=True)
    return due


@external
@nonreentrant
def leave():
    self.leaves_at[msg.sender] = block.timestamp + NOTICE_S
    log Leaving(payer=msg.sender, at=self.leaves_at[msg.sender])


@external
@nonreentrant
def withdraw():
    at: uint256 = self.leaves_at[msg.sender]
    assert at != 0 and block.timestamp >= at, "give notice first"
    amount: uint256 = self.deposit_of[msg.sender]
    self.deposit_of[msg.sender] = 0
    self.leaves_at[msg.sender] = 0
    assert extcall Token(token).transfer(msg.sender, amount, default_return_value=True)
